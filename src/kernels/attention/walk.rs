//! The implementations, and which a device takes.

use super::Entry;
use super::coop::Coop;
use super::tiles::Tiles;
use crate::gpu::{Caps, MatmulPrecision, Shader, Variant};

/// Which shader walks the keys, and by how many queries a workgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Walk {
    /// `attention.wgsl`: a query, or a key, an invocation.
    Rows(usize),
    /// `attention_lanes.wgsl`, for rows that are not long and for long ones.
    Lanes { long: bool },
    /// `attention_tiles.wgsl`.
    Tiles(Tiles),
    /// `attention_coop.wgsl`.
    Coop(Coop),
}

/// Queries (or keys) a workgroup walks the other side with.
pub(super) const TILE: usize = 64;
/// The same on a CPU: as wide as its vectors, because short segments leave wider tiles mostly masked.
pub(super) const LANES: usize = 8;
/// Queries, or keys, a lane of `attention_lanes.wgsl` where rows are long. More than one amortise what a load costs, and loops over a
/// head's quads are written out: lavapipe leaves them rolled, and indexes a private array at run time by a load a lane. A
/// step of two rows of 4,096 tokens then takes 3.9 ms a token instead of 5.5 (E = 48), and compiling ten seconds more.
const LONG_ROWS: usize = 4;
/// Keys that some query sees, from which that compilation is worth while.
const LONG: usize = 1024;
/// The largest head of which LONG_ROWS' rows fit a core's first cache.
const LONG_HEAD: usize = 64;

impl Walk {
    /// Chooses by the device and the model; by the batch, whose queries see `longest` keys at most, only where both give the same bits: what is
    /// packed together changes none.
    pub fn of(caps: &Caps, allowed: &[Variant], precision: MatmulPrecision, head_dim: usize, longest: usize) -> Self {
        if let Some(coop) = Coop::of(caps, precision, head_dim) {
            return Self::Coop(coop);
        }
        let tiles = Tiles::of(head_dim).filter(|_| allowed.contains(&Variant::Flash));
        match tiles {
            Some(tiles) => Self::Tiles(tiles),
            None if allowed.contains(&Variant::Lanes) && caps.has_lanes() => {
                Self::Lanes { long: longest >= LONG && head_dim <= LONG_HEAD }
            }
            None if allowed.contains(&Variant::Cpu) => Self::Rows(LANES),
            None => Self::Rows(TILE),
        }
    }

    /// Queries of a workgroup of the forward pass and of d_q; keys of one of d_k with d_v.
    pub fn tiles(self) -> [usize; 2] {
        match self {
            Self::Rows(tile) => [tile; 2],
            Self::Lanes { long } => [LANES * if long { LONG_ROWS } else { 1 }; 2],
            Self::Tiles(tiles) => [tiles.rows(Entry::Forward), tiles.rows(Entry::BackwardKv)],
            Self::Coop(coop) => [coop.rows(Entry::Forward), coop.rows(Entry::BackwardKv)],
        }
    }

    /// For heads of `head_dim`; `quads`: their rows are whole, aligned quads.
    pub fn shader(self, entry: Entry, head_dim: usize, softcap: bool, quads: bool) -> Shader {
        let shader = match self {
            Self::Rows(tile) => {
                let names = ["attention_fwd", "attention_bwd_q", "attention_bwd_kv"];
                Shader::new("attention", names[entry as usize]).with("TILE", tile as f64)
            }
            Self::Lanes { long } => {
                let names = ["attention_lanes_fwd", "attention_lanes_bwd_q", "attention_lanes_bwd_kv"];
                let shader = Shader::new("attention_lanes", names[entry as usize]);
                if long {
                    shader.with("ROWS", LONG_ROWS as f64).unroll("QUADS", head_dim.div_ceil(4))
                } else {
                    shader.with("ROWS", 1.0)
                }
            }
            Self::Tiles(tiles) => tiles.shader(entry),
            Self::Coop(coop) => coop.shader(entry),
        };
        let shader = shader.with("E", head_dim as f64).with("SOFTCAP", f64::from(u8::from(softcap)));
        match self {
            Self::Tiles(_) | Self::Coop(_) => {
                assert!(quads, "tiles of heads that are not aligned");
                shader
            }
            _ if quads => shader,
            _ => shader.substitute("shared/head_quads", "shared/head_values"),
        }
    }
}
