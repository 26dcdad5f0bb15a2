//! Implementations of attention, and the choice among them.

use super::AttentionEntry;
use super::coop::CoopAttention;
use super::tiles::AttentionTiles;
use crate::gpu::{Caps, MatmulPrecision, Shader, Variant};

/// Implementation of attention: a shader, and how many queries (or keys) its workgroups own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttentionImpl {
    /// `attention.wgsl`, with one query or key per invocation; holds the number of rows per workgroup.
    Rows(usize),
    /// `attention_lanes.wgsl`, with one row per lane, or several where rows are long.
    Lanes { long: bool },
    /// `attention_tiles.wgsl`.
    Tiles(AttentionTiles),
    /// `attention_coop.wgsl`.
    Coop(CoopAttention),
}

/// Queries, or keys, per workgroup of `attention.wgsl` on a GPU.
pub(super) const TILE: usize = 64;
/// Queries, or keys, per workgroup on a CPU: as wide as its vectors, because short segments leave wider tiles mostly masked.
pub(super) const LANES: usize = 8;
/// Queries, or keys, per lane of `attention_lanes.wgsl` where rows are long. Several rows share the cost of a load. The shader unrolls its
/// loops over a head's vec4s, because lavapipe otherwise indexes a private array by one load per lane. A step of two rows of 4,096 tokens
/// then takes 3.9 ms per token instead of 5.5 (E = 48); compiling takes ten seconds more.
const LONG_ROWS: usize = 4;
/// Number of keys that some query must see before long rows repay their compilation.
const LONG: usize = 1024;
/// Largest head size at which `LONG_ROWS` rows fit a core's L1 cache.
const LONG_HEAD: usize = 64;

impl AttentionImpl {
    /// Chooses by the device, the precision and the head size. `longest` is the most keys that a query of the batch sees. It decides only
    /// between bit-identical implementations, because results must not depend on what is packed together.
    pub fn choose(
        caps: &Caps,
        allowed: &[Variant],
        precision: MatmulPrecision,
        head_dim: usize,
        longest: usize,
    ) -> Self {
        if let Some(coop) = CoopAttention::choose(caps, precision, head_dim) {
            return Self::Coop(coop);
        }
        let tiles =
            [(Variant::Flash, false), (Variant::FlashNarrow, true)].into_iter().find_map(|(variant, narrow)| {
                AttentionTiles::for_head_dim(head_dim, narrow).filter(|_| allowed.contains(&variant))
            });
        match tiles {
            Some(tiles) => Self::Tiles(tiles),
            None if allowed.contains(&Variant::Lanes) && caps.has_lanes() => {
                Self::Lanes { long: longest >= LONG && head_dim <= LONG_HEAD }
            }
            None if allowed.contains(&Variant::Cpu) => Self::Rows(LANES),
            None => Self::Rows(TILE),
        }
    }

    /// Returns the rows per workgroup: queries in the forward and d_q kernels, keys in the kernel of d_k and d_v.
    pub fn tiles(self) -> [usize; 2] {
        match self {
            Self::Rows(tile) => [tile; 2],
            Self::Lanes { long } => [LANES * if long { LONG_ROWS } else { 1 }; 2],
            Self::Tiles(tiles) => [tiles.rows(AttentionEntry::Forward), tiles.rows(AttentionEntry::BackwardKv)],
            Self::Coop(coop) => [coop.rows(AttentionEntry::Forward), coop.rows(AttentionEntry::BackwardKv)],
        }
    }

    /// Returns the kernels of d_k and d_v, each with its operations per pair and value of a head.
    pub fn kv_shaders(self, head_dim: usize, softcap: bool, vec4s: bool) -> Vec<(Shader, u64)> {
        let shader = self.shader(AttentionEntry::BackwardKv, head_dim, softcap, vec4s);
        match self {
            Self::Tiles(tiles) => tiles.kv_shaders(&shader),
            _ => vec![(shader, 8)],
        }
    }

    /// Returns the shader for heads of `head_dim`. `vec4s`: rows of the heads are whole, aligned vec4s.
    pub fn shader(self, entry: AttentionEntry, head_dim: usize, softcap: bool, vec4s: bool) -> Shader {
        let shader = match self {
            Self::Rows(tile) => {
                let names = ["attention_fwd", "attention_bwd_q", "attention_bwd_kv"];
                Shader::new("attention", names[entry as usize]).with("TILE", tile as f64)
            }
            Self::Lanes { long } => {
                let names = ["attention_lanes_fwd", "attention_lanes_bwd_q", "attention_lanes_bwd_kv"];
                let shader = Shader::new("attention_lanes", names[entry as usize]);
                if long {
                    shader.with("ROWS", LONG_ROWS as f64).unroll("VEC4S", head_dim.div_ceil(4))
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
                assert!(vec4s, "tiles of heads that are not aligned");
                shader
            }
            _ if vec4s => shader,
            _ => shader.substitute("shared/head_vec4s", "shared/head_values"),
        }
    }
}
