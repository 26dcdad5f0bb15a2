//! jointwise: preference tuning of language models (SFT, DPO, JPO) on any GPU. Transformer forward, backward and AdamW are WGSL compute
//! shaders, dispatched through wgpu; a Hugging Face checkpoint goes in, a Hugging Face checkpoint or a PEFT adapter comes out.
//!
//! This page is the architecture. `README.md` and `docs/` are for users, `CONTRIBUTING.md` says how to change something; `docs/library.md` and `examples/` use the library.
//!
//! # Crate map
//!
//! From the top floor to the ground. A module uses only the modules below it, and files of a folder do not use each other in circles:
//! `tests/layers.rs` proves both. [`error`], [`files`], [`rng`], `progress` and `validate` are the ground, which every module uses.
//!
//! | module | what it decides |
//! |---|---|
//! | `cli` | the terminal, one file a subcommand; no logic of the engine (feature `cli`, on by default) |
//! | `study` | a whole experiment or online rounds from one file: stages, each done once; a study also over MPI ranks, or as jobs |
//! | `flags` | flags as typed, which the command line, `--config` and studies read; each group resolves into settings of `workflow` |
//! | [`workflow`] | whole jobs in a few calls: [`Policy`], [`Preferences`], [`Recipe`], [`Training`], devices with their caches; re-exported from the root |
//! | [`report`] | `report.html`: charts and tables that load nothing |
//! | [`eval`] | generation with a KV cache; judges ([`eval::judge`]), asking them ([`eval::acquire`]), what they say ([`eval::interplay`]), win rates of checkpoints ([`eval::evaluate`]); the demo's tasks, their grader, win rates |
//! | [`train`] | a run's settings ([`train::settings`]), the step, the loop, schedule, checkpoints and resuming, metrics, TensorBoard |
//! | [`data`] | rows of files → template → ids with a boundary → packed micro-batches ([`kernels::packed_batch`]); no GPU |
//! | [`model`] | what a folder holds besides weights, read once ([`model::side_files`]); `config.json` → one [`model::description::ModelConfig`]; safetensors and GGUF ([`model::gguf`]) in and out; one decoder for every family, forward and reverse; LoRA, PEFT |
//! | [`objective`] | per-sequence scores → loss and its gradient, in f64: JPO and DPO × 24 losses and mixes of them, each a sum of a few kinds of terms ([`kernels::objective::term`]) |
//! | [`kernels`] | one file a kernel family: launcher, f64 twin, cases, cost; [`kernels::REGISTRY`] lists them |
//! | [`gpu`] | device and [`gpu::Caps`], linker, buffers, recordings; wgpu's names end here |
//! | [`ranks`] | ranks of a run in several processes, and what they exchange; MPI's names end here (feature `mpi`) |
//! | `shaders/` | the WGSL; a file has the same stem as its Rust file in `src/kernels/` |
//!
//! # Dimensions
//!
//! Shapes stand in comments at declarations, in these letters:
//!
//! | | | | |
//! |---|---|---|---|
//! | T | packed tokens of a micro-batch | F | feed-forward width |
//! | S | segments (sequences) in it | V | vocabulary |
//! | N | predictions that are scored | L | layers |
//! | D | model width | R | rank of an adapter |
//! | H, K | query heads, key/value heads | E | head size |
//! | X | experts of a layer | k | experts that a token is sent to |
//!
//! Matrices are (out, in), row-major, as in Hugging Face's linear layers; GPT-2's Conv1D weights are transposed on loading and back on
//! saving. Entry points are `<op>_fwd` and `<op>_bwd_<wrt>`; gradients are `d_x`; names of tensors are Hugging Face's.
//!
//! # Data flow
//!
//! ```text
//!  row (JSONL)                                            data::rows, data::prompt_template
//!   └─ pair {chosen, rejected}, each (instruction, response)
//!       └─ ids and the first response token               data::tokens, data::dataset
//!           └─ micro-batch: T tokens in S segments,       data::order, data::pack, kernels::packed_batch
//!              no padding; a shared instruction is a
//!              prefix with two branches
//!  ┌───────────────────────────────────────────────────────────── one recording, nothing waits for the host ──┐
//!  │ embedding                                            (T, D)                                              │
//!  │  └─ L × [ norm → q,k,v (+LoRA) → (head norms) → rope → attention → out → (norm) → + residual             │
//!  │           norm → gate,up (+LoRA) → activation → down (+LoRA) → (norm) → + residual ]                     │
//!  │      └─ gather the N rows that predict something     (N, D)                                              │
//!  │          └─ final norm → logprob: the head in tiles of V, online log-sum-exp; T×V never exists   (N)     │
//!  │              └─ sums over instruction and response   (S, 2)                                              │
//!  │                  └─ objective: with the reference's scores → ∂loss/∂logp   (N)                           │
//!  │                      └─ the same way back, down to the lowest trained layer; gradients are added up      │
//!  └──────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//!   └─ after the last micro-batch: one division by the number of rows (of response tokens for SFT),
//!      global norm, clipping, AdamW                       train::trainer
//!       └─ sums and norm are read back; the host computes loss and metrics from them in f64 (objective, train::metrics)
//! ```
//!
//! In a mixture of experts, the MLP's part is: router logits (T, X) → k experts per token, sorted by expert on the device → rows (T·k, D) in that
//! order → gate,up → activation → down → each token's weighted sum ([`kernels::router`], [`kernels::expert_rows`]).
//!
//! A score is a sum of log-probabilities: of every token after the first for JPO, of the response and EOS for DPO. The reference is the
//! starting policy unless told otherwise: the model without its new adapter, the adapter that the run started from (kept beside the one that is
//! trained), or, where every weight is trained, the weights before the first step. So one model is in memory. The same kernels score a row when the run first
//! comes to it ([`train::reference`]); the score is kept on disk under a hash of the row's tokens, in a folder of model, program and driver
//! ([`train::score_store`]). Where both instructions are the same, JPO's loss and gradients equal DPO's
//! (the paper's Lemma D.1), which is also why the shared prefix may be computed once.
//!
//! # Memory
//!
//! WebGPU tracks usage by whole buffer, so one buffer cannot be read-only and read-write in a dispatch: roles are separate buffers
//! ([`gpu::Role`]).
//!
//! - **Trained tensors** lie in pages of parallel buffers (value, gradient, two moments) with the same elements in the same order, so AdamW is
//!   one dispatch a page. A page fits a binding, no tensor straddles one, and a larger matrix is split by rows ([`model::weights`]). Tensors of
//!   a page are held alike: values in f32 or bf16 ([`model::weights::ParamDtype`]), moments in f32 or eight bits ([`kernels::moments`]).
//!   Blocks of 256 elements share a scale, and elements are numbered through for the chance in stochastic rounding; tensors begin and are split at
//!   blocks, so neither depends on the device's pages.
//! - **Frozen weights** are held as stored: bf16 two to a word where the file has bf16, f32 otherwise; linear ones also in int8 or NF4
//!   ([`kernels::storage`]), quantised on loading, codes and scales of a part in one buffer, dequantised inside the products. Arithmetic is
//!   f32 throughout.
//! - **Activations** come from a pool ([`gpu::Gpu::alloc_activation`]) and go back when the last [`gpu::Slot`] is dropped. Commands run in the order
//!   of recording, so a slot may be given to a later command at once: liveness is Rust's scope.
//! - **The MLP's width** is the largest of all activations: where it would not fit a binding, the MLP is computed for some tokens after the
//!   others.
//! - **Recomputation**: where memory is short, norms and activations are computed again in the backward pass, or a layer keeps its input alone
//!   and runs again ([`model::saved::RecomputePolicy`]); the same kernels on the same values give the same bits.
//! - **Saved values** may be held in bf16 ([`model::saved::SavedDtype`]): rounded where a layer's forward pass ends, or where it has been run
//!   again, so that recomputation changes no bit here either.
//! - **The plan** ([`gpu::Gpu::plan`]) is the same program on a device that only counts: what `jointwise plan` prints is what a run
//!   allocates ([`gpu::Ledger`]), because there is no second description of it.
//!
//! # Recordings
//!
//! Launchers append dispatches to a [`gpu::Recording`]; [`gpu::Recording::submit`] encodes neighbours into one compute pass, and cuts long
//! recordings so that a submission takes about 0.2 s on this device, far below a watchdog's limit; one is always queued behind the one that
//! runs. Uniforms of a recording are one buffer. Bind groups are kept: a step with the last one's shapes finds all of them. Kernels that a
//! recording needs are compiled when it is submitted, in parallel, with progress, and kept on disk where the driver can
//! ([`gpu::Gpu::keep_pipelines`]). What a step launches is listed and timed by [`train::step_launches`]. Nothing inside reads back. No shader uses float atomics: sums are two-stage, the embedding's gradient walks sorted buckets, and
//! dQ has a pass of its own. Two runs on one device give the same bits, which resuming relies on. Different kernels give the same bits (variants of a product,
//! a score as policy and as reference) where the compiler fuses multiplications and additions alike in both, or not at all: Mesa's do, FXC (DX12) does not. Errors of the device are kept, and
//! reported when results are read.
//!
//! # Variants
//!
//! A [`gpu::Shader`] is a module, an entry point, values of its `override`s, and substitutions of imported modules
//! (`shared/weight` by `shared/weight_bf16`, `_int8` or `_nf4`, `shared/param` by `shared/param_bf16`, `shared/moments` by
//! `shared/moments_8bit`: the same names, another storage type). There is no `#ifdef`. A different algorithm is
//! a different file: `matmul_tiles.wgsl` and `attention_tiles.wgsl` for GPUs where everything is aligned, `*_rows.wgsl` for kernels that memory limits, with several loads of vec4s in flight, `matmul_cpu.wgsl` with its tile in registers, because workgroup
//! memory is slow in software drivers, `matmul_lanes.wgsl` and `attention_lanes.wgsl` where those have subgroups. Launchers choose from [`gpu::Caps`] alone: a family has its baseline, and each [`gpu::Variant`] that the device
//! has passed a check ([`kernels::with_checked_variants`]; [`Gpu::open_with`] does it once for a driver). Variants of a product add a sum's terms in the baseline's order, and give its bits; those of attention, and of the kernels of rows, are
//! chosen by the device and the model alone. So a row's result is the same to the bit, whatever is packed beside it. The baseline, which must always work, is WebGPU's guaranteed minimum ([`gpu::Caps::baseline`]). Every
//! variant that a kernel lists is translated to SPIR-V, MSL and HLSL in `tests/shaders.rs`.
//!
//! Cooperative matrices (`matmul_coop.wgsl`, `attention_coop.wgsl`) round otherwise, so they are no variant that a device chooses:
//! [`gpu::MatmulPrecision`] asks for them. They too give a row the same bits whatever is beside it: each row of x has a scale of its own,
//! only a weight's shape or the head size has a say in whether they are used, and attention's blocks are of positions in a sequence, not of rows
//! in a batch. A workgroup is four subgroups; where the driver chooses their size, it is measured as the device is opened. The lines `enable f16;` and `enable wgpu_cooperative_matrix;` come from [`gpu::Shader::enable`]; HLSL has no such
//! matrices, Metal none of 16×16.
//!
//! Natively, shaders are compiled without bounds checks; they guard their own indices. `JOINTWISE_CHECKED=1` compiles them with
//! wgpu's checks: of loops, and of arrays in private and workgroup memory, while indices of buffers are left to drivers that answer wrong ones
//! with zeros. Kernel tests put guards around each slot instead ([`gpu::Gpu::with_guards`]). `JOINTWISE_VARIANT=tiles64` (`--variant`) allows these variants and no others: what a GPU runs, on a machine without one.
//!
//! # How it is known to be right
//!
//! In order: naga validates and translates every variant; a kernel's f64 twin is checked against central differences; the device is
//! checked against the twin at shapes on both sides of tile edges, with one table of tolerances ([`kernels::tolerance`]), and a nudged
//! expectation must fail; whole models are checked against float64 PyTorch (`tests/oracle`). [`kernels::self_test`] runs part of
//! this on the user's device (`jointwise info`).
//!
//! # Where this departs from its design notes
//!
//! - **`override`s are baked as `const`s by the linker.** The notes leave them to the pipeline. naga takes an `override` as the size of a
//!   workgroup array, but not of a private one, and attention keeps a head's row in private memory.
//! - **Activations are pooled by Rust ownership**, not laid out by a liveness pass over a graph. There is no graph: the order of the
//!   launchers' calls is the program, and dropping a slot is the end of its life. The plan stays exact, since it runs the same calls.
//! - **A recording is a micro-batch**, not a whole step: accumulation submits one after the other without waiting, and the update is
//!   one more. The next step is packed and recorded while the device works; the host waits once a step, for sums and norm, before it submits it, so
//!   that a NaN stops the run at the step that made it.
//! - **The tuning table knows products only** ([`gpu::Tuning`], `jointwise tune`), and what is shipped was measured on lavapipe; elsewhere tiles
//!   are chosen by how many workgroups they give.

/// Logs one line for the user at level `info`, or `warn` where the line begins with `warning: `. A line without `note: ` before it goes to the target
/// `jointwise::status`. The command line writes all of them to standard error.
macro_rules! note {
    ($($text:tt)*) => {{
        let text = $crate::error::one_line(&format!($($text)*));
        match (text.strip_prefix("note: "), text.strip_prefix("warning: ")) {
            (Some(rest), _) => log::info!("{rest}"),
            (_, Some(rest)) => log::warn!("{rest}"),
            _ => log::info!(target: "jointwise::status", "{text}"),
        }
    }};
}

#[cfg(feature = "cli")]
pub mod cli;
pub mod data;
pub mod error;
pub mod eval;
pub mod files;
#[cfg(feature = "cli")]
mod flags;
pub mod gpu;
pub mod kernels;
pub mod model;
pub mod objective;
#[cfg(feature = "native")]
pub mod progress;
pub mod ranks;
pub mod report;
pub mod rng;
#[cfg(feature = "cli")]
mod study;
pub mod train;
mod validate;
pub mod workflow;

pub use data::prompt_template::Template;
pub use data::rows::DatasetType;
pub use error::{Error, Result};
pub use gpu::Gpu;
pub use model::lora_config::LoraConfig;
pub use model::weights::BaseDtype;
pub use objective::{Loss, LossMix, Objective, Term};
pub use ranks::{Ranks, ReduceDtype};
pub use train::settings::ReferenceChoice;
pub use workflow::{
    DataOptions, GenerateOptions, Policy, PolicyOptions, Preferences, Recipe, Recompute, SequenceScore,
};
#[cfg(feature = "native")]
pub use workflow::{
    DeviceOptions, OnlineRound, RoundPreferences, RunFolder, Training, TrainingOptions, TrainingStep, TunedModel,
    judge_comparisons,
};
