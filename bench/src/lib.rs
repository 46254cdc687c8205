//! Benchmarks. Whole jobs are compared with other tools and with what the machine can do ([`e2e()`]), and with an older
//! build ([`pair()`]). Others measure stages on one core and what limits them ([`stages()`]), the wire and quinn alone
//! ([`wire()`]), jobs across long and leaky links ([`wan()`]), a job while its storage node is attacked ([`attack()`]),
//! three proxies at the same time ([`proxies()`]), sweeps of millions of chunks ([`sweep()`]), verifications, compared
//! with b3sum and with decoding alone ([`verify()`]), and reading a disk through a view, compared with restoring it
//! ([`view()`]).
//!
//! Compare only numbers of the same run, because they depend on the machine as much as on the programs.

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
