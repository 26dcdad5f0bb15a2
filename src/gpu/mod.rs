//! Device and its capabilities, shader linking, memory, recording.
//!
//! Everything above this module speaks of [`Slot`]s and [`Recording`]s; wgpu's names end here.

mod device;
mod memory;
mod pipelines;
mod precision;
mod profile;
mod record;
mod shader;
mod submit;
mod tuning;
mod variant;

pub use device::{Caps, Cooperative, DeviceChoice, DeviceSummary, Gpu, list_devices};
pub use memory::{Ledger, Role, Slot};
pub use pipelines::OnCompile;
pub use precision::MatmulPrecision;
pub use profile::Profile;
pub use record::{Recording, grid_1d};
pub use shader::{SHADERS, Shader, link};
pub use tuning::Tuning;
pub use variant::Variant;
