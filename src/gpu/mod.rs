//! Device and its capabilities, shader linking, memory, recording of commands.
//!
//! Modules above this one use [`Slot`]s and [`Recording`]s only, and no types of wgpu.

mod adapters;
mod blocks;
mod device;
mod device_facts;
mod device_memory;
mod failure;
mod guards;
mod launch_times;
mod ledger;
mod memory;
mod open_device;
mod pipelines;
mod precision;
mod profile;
mod readback;
mod record;
mod shader;
mod shader_text;
mod subgroups;
mod submission_budget;
mod submission_count;
mod submit;
mod tuning;
mod variant;

pub use adapters::{DeviceChoice, DeviceSummary, choose_device, list_devices};
pub use device::{Caps, CooperativeMatrix, Gpu};
pub use device_facts::{DeviceFacts, DeviceFeature, DeviceLimit};
pub use launch_times::{LaunchTimes, TimingMethod};
pub use ledger::{Ledger, Role};
pub use memory::Slot;
pub use open_device::OnWait;
pub use pipelines::OnCompile;
pub use precision::MatmulPrecision;
pub use profile::KernelProfile;
pub use readback::PendingRead;
pub use record::{CountedWork, DispatchWork, PlannedWork, RecordedLaunch, Recording, grid_1d, uniform_bytes_in_parts};
pub use shader::{SHADERS, Shader, link};
pub use shader_text::module_head;
pub use tuning::Tuning;
pub use variant::Variant;
