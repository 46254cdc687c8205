//! The UDP sockets of end points.

use rustix::net::sockopt;
use socket2::{SockFilter, SockRef};
use std::io;
use std::net::{SocketAddr, UdpSocket};

/// A socket whose buffers hold what comes while both ends' threads do something else: the kernel's usual 200 KiB are 2 ms
/// of 1 Gbit/s, and what does not fit looks like a crowded link to the sender.
pub fn asking(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    // Beyond the system's limit is for root alone; others get as much as the limit gives.
    let receiving = sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, BUFFER_BYTES));
    let sending = sockopt::set_socket_send_buffer_size_force(&socket, BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, BUFFER_BYTES));
    receiving.and(sending)?;
    // Peers measured three times the time for each byte without.
    if quinn::udp::UdpSocketState::new((&socket).into())?.max_gso_segments() == 1 {
        tracing::warn!("this kernel does not cut UDP packets itself (UDP_SEGMENT): sending takes three times the CPU");
    }
    Ok(socket)
}

/// As [`asking`], for an end point that answers everybody. The kernel drops packets that cannot belong to a connection
/// of ours. So a flood of such packets costs us no reading, and takes no room from the packets of others.
pub fn answering(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = asking(address)?;
    SockRef::from(&socket).attach_filter(&plausible())?;
    Ok(socket)
}

/// A program for the kernel (classic BPF; Linux, `Documentation/networking/filter.rst`): takes packets with short headers,
/// and with long ones those of QUIC version 1 (RFC 8999, 5). It sees the UDP header first; a packet that ends before what
/// is looked at is dropped.
fn plausible() -> [SockFilter; 6] {
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_BITS: u16 = 0x45;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const UDP_HEADER_BYTES: u32 = 8;
    const LONG_HEADER: u32 = 0x80;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, UDP_HEADER_BYTES),
        SockFilter::new(JUMP_IF_BITS, 0, 2, LONG_HEADER),
        SockFilter::new(LOAD_WORD, 0, 0, UDP_HEADER_BYTES + 1),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, QUIC_VERSION),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// Asked of the kernel for each direction.
const BUFFER_BYTES: usize = 4 << 20;
const QUIC_VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_packets_of_our_version_arrive() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let any: SocketAddr = any.parse().unwrap();
            let (socket, peer) = (answering(any).unwrap(), UdpSocket::bind(any).unwrap());
            let to = socket.local_addr().unwrap();
            let long = |version: u32| [&[0xc0][..], &version.to_be_bytes(), &[8; 1195]].concat();
            for dropped in [&[][..], &[0xc0], &[0xc0, 0, 0, 0], &long(0), &long(2), &long(1 << 24), &[0xff; 1200]] {
                peer.send_to(dropped, to).unwrap();
            }
            for taken in [&long(1)[..], &[0x40], &[0x7f; 1452], &[0x80, 0, 0, 0, 1]] {
                peer.send_to(taken, to).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut buffer = [0; 2048];
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], from), (taken, peer.local_addr().unwrap()));
            }
        }
    }
}
