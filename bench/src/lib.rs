//! Benchmarks: whole jobs beside their peers ([`e2e()`]), stages on one core beside what limits them ([`stages()`]), and a job
//! while its storage node is attacked ([`attack()`]).
//!
//! Numbers of one run are compared with each other only: the machine is as much a part of them as the programs.

mod attack;
pub mod attacker;
mod e2e;
mod measure;
pub mod node;
mod report;
mod stages;
pub mod tools;

pub use attack::{AttackOptions, attack};
pub use e2e::{E2eOptions, e2e};
pub use stages::stages;
