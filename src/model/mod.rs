//! Models: `config.json` into one description; safetensors and GGUF read and written; the decoder's forward and backward pass; LoRA.

mod attention_mixer;
mod backward;
pub mod card;
pub mod checkpoint;
mod computed_file;
pub mod config;
pub mod decoder;
mod delta_mixer;
pub mod delta_net;
pub mod description;
mod families;
pub mod folder;
pub mod gguf;
#[cfg(feature = "native")]
pub mod hub;
pub mod kv_cache;
mod lent_keys;
pub mod linear;
pub mod load;
pub mod lora_config;
mod mixer;
pub mod peft;
mod per_layer_inputs;
mod per_layer_passes;
pub mod quantised;
pub mod save;
pub mod saved;
pub mod scores;
mod shared_values;
mod shared_weights;
pub mod side_files;
pub mod tensor_file;
mod tensor_header;
mod trained_token_passes;
pub mod trained_tokens;
pub mod weights;
