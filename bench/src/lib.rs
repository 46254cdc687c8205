//! Benchmarks: whole jobs beside their peers and beside what the machine can do ([`e2e()`]), by two builds in turn
//! ([`pair()`]), stages on one core beside what limits them ([`stages()`]), the wire beside quinn alone ([`wire()`]), jobs
//! across long and leaky links ([`wan()`]), a job while its storage node is attacked ([`attack()`]), three proxies at once
//! ([`proxies()`]), sweeps of millions of chunks ([`sweep()`]), verifications beside b3sum and bare decoding
//! ([`verify()`]), and reading a disk here and there beside restoring it ([`view()`]).
//!
//! Numbers of one run are compared with each other only: the machine is as much a part of them as the programs.

mod attack;
pub mod attacker;
mod blocks;
mod disk;
mod e2e;
mod judge;
mod limit;
mod machine;
mod measure;
pub mod node;
mod ours;
mod pair;
mod peers;
mod promises;
mod proxies;
pub mod relay;
mod report;
mod stages;
mod sweep;
pub mod tools;
mod verify;
mod view;
mod wan;
mod wire;

pub use attack::{AttackOptions, attack};
pub use e2e::{E2eOptions, e2e};
pub use pair::{PairOptions, pair};
pub use proxies::proxies;
pub use stages::stages;
pub use sweep::sweep;
pub use verify::verify;
pub use view::view;
pub use wan::wan;
pub use wire::wire;
