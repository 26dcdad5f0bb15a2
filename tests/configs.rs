//! config.json: what transformers makes of it, and bad ones told by field.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::slice::from_ref;

use common::{describe, oracles, says};
use jointwise::error::Error;
use jointwise::model::checkpoint::Checkpoint;
use jointwise::model::description::{Activation, ModelConfig, RopeScaling};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Without `model_type` or with.
const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16,
    "intermediate_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 40}"#;

#[test]
fn configs_resolve_as_in_transformers() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
    let mut n = 0;
    for path in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().unwrap() == "json") {
        let fixture: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let d = ModelConfig::from_json(&path, &fixture["config"].to_string()).unwrap();
        let ours: BTreeMap<String, Value> = d.tensors().into_iter().map(|s| (s.name, json!(s.shape))).collect();
        // gpt-oss's checkpoints hold all experts in one tensor, too.
        let splits = d.architecture != "GptOssForCausalLM";
        let stored = |(name, shape): (&String, &Value)| match splits {
            true => of_checkpoint(name, shape),
            false => vec![(name.clone(), shape.clone())],
        };
        let theirs: BTreeMap<String, Value> = fixture["tensors"].as_object().unwrap().iter().flat_map(stored).collect();
        assert_eq!(ours, theirs, "{}", path.display());

        let r = &fixture["resolved"];
        if let Some(parameters) = r["parameters"].as_u64() {
            let n: usize = d.tensors().iter().map(|s| s.shape.iter().product::<usize>()).sum();
            assert_eq!(n as u64, parameters, "{}", path.display());
        }
        assert_eq!(json!(d.tied), r["tied"]);
        assert_eq!(json!(d.layers.iter().map(|l| l.window).collect::<Vec<_>>()), r["windows"], "{}", path.display());
        assert_eq!(d.attention_scale, r["scale"].as_f64().unwrap() as f32);
        assert_eq!(d.norm.eps, r["eps"].as_f64().unwrap() as f32);
        assert_eq!(d.ropes.len(), r["ropes"].as_array().unwrap().len());
        for (ours, theirs) in d.ropes.iter().zip(r["ropes"].as_array().unwrap()) {
            let kind = match ours.scaling {
                RopeScaling::Default => "default",
                RopeScaling::Linear { .. } => "linear",
                RopeScaling::Llama3 { .. } => "llama3",
                RopeScaling::Yarn { .. } => "yarn",
                RopeScaling::LongRope { .. } => "longrope",
                RopeScaling::Proportional { .. } => "proportional",
            };
            assert_eq!(json!(kind), theirs["kind"]);
            assert_eq!(json!(ours.rotary_dim), theirs["rotary_dim"]);
            assert_eq!(Some(ours.theta), theirs["theta"].as_f64());
        }
        let activation = match r["activation"].as_str() {
            Some("SiLUActivation") => Activation::Silu,
            Some("GptOssExperts") => Activation::ClampedSwiglu { limit: 7.0, alpha: 1.702 },
            _ => Activation::GeluTanh,
        };
        assert_eq!(d.activation, activation);
        n += 1;
    }
    assert_eq!(n, 31);
}

/// Tensors of a checkpoint that transformers 5 holds as one: those of experts.
fn of_checkpoint(name: &str, shape: &Value) -> Vec<(String, Value)> {
    let Some((at, what)) = name.rsplit_once(".mlp.experts.") else { return vec![(name.into(), shape.clone())] };
    let [experts, rows, columns] = [0, 1, 2].map(|i| shape[i].as_u64().expect("three dimensions"));
    let parts = match what {
        "gate_up_proj" => vec![("gate_proj", rows / 2), ("up_proj", rows / 2)],
        other => vec![(other, rows)],
    };
    let tensor =
        |e: u64, (part, rows): (&str, u64)| (format!("{at}.mlp.experts.{e}.{part}.weight"), json!([rows, columns]));
    (0..experts).flat_map(|e| parts.iter().map(move |&part| tensor(e, part)).collect::<Vec<_>>()).collect()
}

/// Qwen3-MoE: layers with experts and with an MLP, both spellings of the number of experts, and what is refused.
#[test]
fn experts_of_qwen3_moe() {
    let read = |changes: &[(&str, Value)]| {
        let mut config = json!({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 16,
            "intermediate_size": 24, "moe_intermediate_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_hidden_layers": 4, "vocab_size": 40, "num_experts": 6, "num_experts_per_tok": 2});
        changes.iter().for_each(|(field, value)| match value.as_str() {
            Some("ABSENT") => drop(config.as_object_mut().unwrap().remove(*field)),
            _ => config[*field] = value.clone(),
        });
        ModelConfig::from_json("m/config.json", &config.to_string())
    };
    let counts = |d: &ModelConfig| {
        d.layers.iter().map(|l| (l.d_ff, l.experts().map(|e| (e.count, e.top_k)))).collect::<Vec<_>>()
    };
    let d = read(&[]).unwrap();
    assert_eq!(counts(&d), [(8, Some((6, 2))); 4]);
    let experts = d.layers[0].experts().unwrap();
    // Weights add up to 1 only where `norm_topk_prob` is on.
    assert!(
        experts.over_all && !read(&[("norm_topk_prob", json!(true))]).unwrap().layers[0].experts().unwrap().over_all
    );
    assert_eq!(experts.router.name, "model.layers.0.mlp.gate");
    assert_eq!(experts.up[1].weights[5].name, "model.layers.0.mlp.experts.5.up_proj.weight");
    // Experts and router are no targets of an adapter.
    assert!(d.layers.iter().all(|l| l.linears().count() == 4) && d.head_dim == 4);
    let real = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs/qwen3-30b-a3b.json");
    let fixture: Value = serde_json::from_str(&fs::read_to_string(&real).unwrap()).unwrap();
    let published = ModelConfig::from_json(&real, &fixture["config"].to_string()).unwrap();
    assert_eq!((published.parameters(), published.active_parameters()), (30_532_122_624, 3_353_032_704));
    assert!(d.has_experts());
    // An expert's share: k of X experts per token.
    assert_eq!(d.active_parameters() + 4 * 4 * 3 * 16 * 8, d.parameters());

    let d = read(&[("mlp_only_layers", json!([0])), ("decoder_sparse_step", json!(2))]).unwrap();
    assert_eq!(counts(&d), [(24, None), (8, Some((6, 2))), (24, None), (8, Some((6, 2)))]);
    assert_eq!(d.layers[0].linears().map(|m| m.name.as_str()).last(), Some("model.layers.0.mlp.down_proj"));
    let d = read(&[("num_experts", json!("ABSENT")), ("num_local_experts", json!(3))]).unwrap();
    assert_eq!(counts(&d)[0], (8, Some((3, 2))));
    let windows = |more: &[(&str, Value)]| read(more).unwrap().layers.iter().map(|l| l.window).collect::<Vec<_>>();
    assert_eq!(windows(&[("sliding_window", json!(5))]), [None; 4]);
    assert_eq!(windows(&[("sliding_window", json!(5)), ("use_sliding_window", json!(true))]), [Some(5); 4]);

    for (field, value, reason) in [
        ("num_local_experts", json!(5), "6 contradicts `num_local_experts`, 5"),
        ("num_experts", json!(1), "2 is more than num_experts = 1"),
        ("num_experts", json!(5000), "expected a whole number in 1 ..= 1024, found 5000"),
        ("num_experts_per_tok", json!(0), "expected a whole number in 1 ..= 1024, found 0"),
        ("mlp_only_layers", json!(["0"]), "expected a list of layers' numbers"),
        ("output_router_logits", json!(true), "adds the auxiliary loss of the router"),
        ("n_routed_experts", json!(6), "6 is not supported"),
    ] {
        says(read(&[(field, value)]), &["m/config.json", reason]);
    }
}

/// gpt-oss: windows, biases, sinks, experts, the rotary table of a file without one, and what is refused.
#[test]
fn layers_of_gpt_oss() {
    let read = |changes: &[(&str, Value)]| {
        let mut config = json!({"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 16,
            "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3,
            "vocab_size": 40, "head_dim": 8, "num_local_experts": 6, "hidden_act": "silu"});
        changes.iter().for_each(|(field, value)| config[*field] = value.clone());
        ModelConfig::from_json("m/config.json", &config.to_string())
    };
    let d = read(&[]).unwrap();
    assert_eq!(d.layers.iter().map(|l| l.window).collect::<Vec<_>>(), [Some(128), None, Some(128)]);
    assert!(d.layers.iter().all(|l| l.qkv.iter().chain([&l.out]).all(|m| m.bias) && l.d_ff == 24));
    assert_eq!(d.layers[1].sinks.as_deref(), Some("model.layers.1.self_attn.sinks"));
    assert_eq!(d.activation, Activation::ClampedSwiglu { limit: 7.0, alpha: 1.702 });
    let experts = d.layers[0].experts().unwrap();
    assert_eq!((experts.count, experts.top_k, experts.over_all, experts.router.bias), (6, 4, false, true));
    let yarn = |original, attention_factor| RopeScaling::Yarn {
        factor: 32.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: false,
        original_max_positions: original,
        attention_factor,
    };
    let magnitude = 0.1 * 32_f64.ln() + 1.0;
    assert_eq!((d.ropes.len(), d.ropes[0].theta, &d.ropes[0].scaling), (1, 1.5e5, &yarn(4096.0, magnitude)));
    let table = json!({"rope_type": "yarn", "factor": 32.0, "truncate": false, "original_max_position_embeddings": 64});
    assert_eq!(read(&[("rope_scaling", table)]).unwrap().ropes[0].scaling, yarn(64.0, magnitude));

    let d = read(&[("attention_bias", json!(false)), ("swiglu_limit", json!(3)), ("num_experts_per_tok", json!(1))]);
    let d = d.unwrap();
    assert!(d.layers[0].qkv.iter().all(|m| !m.bias) && !d.layers[0].out.bias);
    assert_eq!(d.activation, Activation::ClampedSwiglu { limit: 3.0, alpha: 1.702 });
    assert_eq!(d.layers[0].experts().unwrap().top_k, 1);

    for (field, value, reason) in [
        ("num_experts_per_tok", json!(7), "7 is more than num_local_experts = 6"),
        ("swiglu_limit", json!(-1), "expected a number above 0"),
        ("output_router_logits", json!(true), "adds the auxiliary loss of the router"),
        ("sliding_window", json!(null), "has no value"),
        ("layer_types", json!(["full_attention"]), "has 1 entries for num_hidden_layers = 3"),
        ("rope_parameters", json!({"rope_type": "longrope"}), "`longrope` is supported for Phi3ForCausalLM only"),
    ] {
        says(read(&[(field, value)]), &["m/config.json", reason]);
    }
}

/// Gemma 4: heads by layer type, layers that share keys and values, per-layer inputs, and what is refused.
#[test]
fn layers_of_gemma_4() {
    let config = || {
        let types = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"];
        json!({"architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "hidden_size": 16,
            "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4,
            "vocab_size": 40, "head_dim": 8, "global_head_dim": 12, "layer_types": types,
            "hidden_size_per_layer_input": 6})
    };
    let read = |changes: &[(&str, Value)]| {
        let mut config = config();
        changes.iter().for_each(|(field, value)| config[*field] = value.clone());
        ModelConfig::from_json("m/config.json", &config.to_string())
    };
    let heads = |d: &ModelConfig| d.layers.iter().map(|l| (l.n_kv_heads, l.head_dim)).collect::<Vec<_>>();
    let d = read(&[]).unwrap();
    assert_eq!(heads(&d), [(2, 8), (2, 12), (2, 8), (2, 12)]);
    assert_eq!((d.attention_scale, d.norm.weight_offset, d.embed_scale, d.value_norm), (1.0, 0.0, 4.0, true));
    assert_eq!(d.layers.iter().map(|l| l.window).collect::<Vec<_>>(), [Some(512), None, Some(512), None]);
    assert_eq!(d.ropes[0].scaling, RopeScaling::Proportional { rotating_pairs: 1, factor: 1.0 });
    assert_eq!(d.ropes.iter().map(|r| (r.theta, r.rotary_dim)).collect::<Vec<_>>(), [(1e6, 12), (1e4, 8)]);
    // The scalars are buffers: checkpoints have them, and nothing trains them.
    assert!(d.buffers().len() == 4 && d.tensors().iter().all(|s| !s.name.ends_with("layer_scalar")));

    let inputs = d.per_layer_inputs.as_ref().unwrap();
    assert_eq!((inputs.width, inputs.rows, inputs.projection.n_out), (6, 262_144, 24));
    let d = read(&[("hidden_size_per_layer_input", json!(0))]).unwrap();
    assert!(d.per_layer_inputs.is_none() && d.layers.iter().all(|l| l.per_layer.is_none()));

    // The last two layers take keys and values of the last earlier layer of their type, and have a wider MLP.
    let d = read(&[("num_kv_shared_layers", json!(2)), ("use_double_wide_mlp", json!(true))]).unwrap();
    assert_eq!(d.layers.iter().map(|l| l.lender()).collect::<Vec<_>>(), [None, None, Some(0), Some(1)]);
    assert_eq!(
        d.layers.iter().map(|l| (l.qkv.len(), l.d_ff)).collect::<Vec<_>>(),
        [(3, 24), (3, 24), (1, 48), (1, 48)]
    );
    assert!(d.layers[2].k_norm.is_none() && d.lenders().into_iter().eq([0, 1]));

    // Of several earlier layers, the last one lends.
    let full = json!(vec!["full_attention"; 4]);
    let d = read(&[("num_kv_shared_layers", json!(1)), ("layer_types", full)]).unwrap();
    assert_eq!((d.layers[3].lender(), d.layers[2].lender()), (Some(2), None));

    // Full layers have key heads of their own where keys are values.
    let both = [("attention_k_eq_v", json!(true)), ("num_global_key_value_heads", json!(1))];
    let d = read(&both).unwrap();
    assert_eq!(heads(&d), [(2, 8), (1, 12), (2, 8), (1, 12)]);
    assert_eq!(d.layers.iter().map(|l| l.qkv.len()).collect::<Vec<_>>(), [3, 2, 3, 2]);
    assert_eq!(heads(&read(&both[1..]).unwrap()), [(2, 8), (2, 12), (2, 8), (2, 12)]);
    let by_layer =
        json!({"1": {"head_dim": 12, "num_key_value_heads": 1}, "3": {"num_key_value_heads": 1, "head_dim": 12}});
    assert_eq!(read(&[("per_layer_config", by_layer), both[0].clone()]).unwrap(), d);
    // The last layer is a full one.
    let d =
        read(&[("layer_types", json!(["full_attention", "sliding_attention", "full_attention", "sliding_attention"]))]);
    assert_eq!(d.unwrap().layers[3].window, None);

    for (field, value, reason) in [
        ("enable_moe_block", json!(true), "mixtures of experts of Gemma 4 are not"),
        ("use_bidirectional_attention", json!("all"), "\"all\" is not supported (\"vision\" is)"),
        ("num_experts", json!(8), "8 is not supported"),
        ("num_kv_shared_layers", json!(4), "expected a whole number below 4, found 4"),
        ("num_kv_shared_layers", json!(3), "layer 1 has no earlier layer of its type"),
        ("vocab_size_per_layer_input", json!(39), "39 is below vocab_size = 40"),
        ("global_head_dim", json!(0), "found 0"),
        ("per_layer_config", json!({"1": {"head_dim": 12}}), "layers 1 and 3 have one type, but different heads"),
        ("per_layer_config", json!({"4": {"head_dim": 12}}), "is no layer of 4"),
        ("per_layer_config", json!({"1": {"sliding_window": 12}}), "is not supported for a single layer"),
        ("rope_parameters", json!({"full_attention": {"rope_type": "default"}}), "is missing"),
        ("layer_types", json!(vec!["chunked_attention"; 4]), "(full_attention, sliding_attention are)"),
        ("architectures", json!(["Gemma4AssistantForCausalLM"]), "`Gemma4AssistantForCausalLM` is not supported"),
    ] {
        says(read(&[(field, value)]), &["m/config.json", field, reason]);
    }
    let three = [
        ("num_key_value_heads", json!(4)),
        ("attention_k_eq_v", json!(true)),
        ("num_global_key_value_heads", json!(3)),
    ];
    says(read(&three), &["m/config.json", "3 in layer 1 does not divide num_attention_heads = 4"]);
}

/// LFM2: which layers have a short convolution, the width of the MLP, and what is refused.
#[test]
fn layers_of_lfm2() {
    let read = |changes: &[(&str, Value)]| {
        let mut config = json!({"architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "hidden_size": 16,
            "intermediate_size": 100, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4,
            "vocab_size": 40, "hidden_act": "gelu"});
        changes.iter().for_each(|(field, value)| config[*field] = value.clone());
        ModelConfig::from_json("m/config.json", &config.to_string())
    };
    let is_conv = |changes: &[(&str, Value)]| -> Vec<bool> {
        read(changes).unwrap().layers.iter().map(|layer| layer.short_conv().is_some()).collect()
    };
    let types = ("layer_types", json!(["conv", "full_attention", "conv", "conv"]));
    let idxs = ("full_attn_idxs", json!([0, 2]));
    assert_eq!(is_conv(&[]), [false; 4]);
    assert_eq!(is_conv(from_ref(&idxs)), [false, true, false, true]);
    assert_eq!(is_conv(from_ref(&types)), [true, false, true, true]);
    assert_eq!(is_conv(&[types.clone(), idxs]), [true, false, true, true]);

    let d = read(from_ref(&types)).unwrap();
    assert_eq!((d.norm.eps, d.ropes[0].theta, d.max_positions, d.tied), (1e-5, 1e6, 128_000, true));
    // `Lfm2MLP` reads no activation function.
    assert_eq!((d.activation, d.final_norm.as_str()), (Activation::Silu, "model.embedding_norm"));
    let (conv, attention) = (&d.layers[0], &d.layers[1]);
    let names = |layer: &jointwise::model::description::LayerConfig| -> Vec<String> {
        layer.linears().map(|linear| linear.name.rsplit('.').next().unwrap().to_string()).collect()
    };
    assert_eq!(names(conv), ["in_proj", "out_proj", "w1", "w3", "w2"]);
    assert_eq!(names(attention), ["q_proj", "k_proj", "v_proj", "out_proj", "w1", "w3", "w2"]);
    assert!(conv.q_norm.is_none() && conv.rope.is_none() && attention.rope.is_some());
    assert_eq!(attention.k_norm.as_deref(), Some("model.layers.1.self_attn.k_layernorm"));
    assert_eq!((d.conv_taps(), conv.qkv[0].n_out, conv.qkv[0].bias), (Some(3), 48, false));

    // A bias is one of all three modules.
    let d = read(&[types, ("conv_bias", json!(true)), ("conv_L_cache", json!(5))]).unwrap();
    let biases: Vec<String> =
        d.tensors().into_iter().map(|s| s.name).filter(|n| n.contains(".0.") && n.ends_with("bias")).collect();
    assert_eq!(biases, ["conv.bias", "in_proj.bias", "out_proj.bias"].map(|n| format!("model.layers.0.conv.{n}")));
    let shapes = d.tensors().into_iter().find(|s| s.name == "model.layers.2.conv.conv.weight").unwrap().shape;
    assert_eq!((shapes, d.conv_taps()), (vec![16, 1, 5], Some(5)));

    // Two thirds of the width, times a factor, in whole blocks.
    let width = |changes: &[(&str, Value)]| read(changes).unwrap().d_ff;
    let of_8 = ("block_multiple_of", json!(8));
    assert_eq!(width(&[]), 256);
    assert_eq!(width(from_ref(&of_8)), 72);
    assert_eq!(width(&[of_8.clone(), ("block_ffn_dim_multiplier", json!(1.3))]), 88);
    assert_eq!(width(&[of_8.clone(), ("block_ffn_dim_multiplier", json!(null))]), 66);
    assert_eq!(width(&[of_8.clone(), ("block_auto_adjust_ff_dim", json!(false))]), 100);
    assert_eq!(width(&[of_8, ("block_ff_dim", json!(300))]), 200);
    let tied =
        |outer: Value, older: Value| read(&[("tie_word_embeddings", outer), ("tie_embedding", older)]).unwrap().tied;
    assert_eq!([tied(json!(true), json!(false)), tied(json!(false), json!(null))], [false, false]);

    for (field, value, reason) in [
        ("layer_types", json!(vec!["sliding_attention"; 4]), "(full_attention, conv are)"),
        ("layer_types", json!(["conv"]), "has 1 entries for num_hidden_layers = 4"),
        ("full_attn_idxs", json!([4]), "4 is no layer of 4"),
        ("full_attn_idxs", json!([-1]), "expected layers' numbers"),
        ("conv_L_cache", json!(1), "expected at least 2"),
        ("conv_bias", json!(1), "expected true or false"),
        ("block_multiple_of", json!(0), "found 0"),
        ("intermediate_size", json!(1), "1 gives an MLP of a width that is not in 1 ..="),
        ("norm_eps", json!(0), "expected a number above 0"),
        ("num_experts", json!(8), "8 is not supported"),
        ("architectures", json!(["Lfm2MoeForCausalLM"]), "`Lfm2MoeForCausalLM` is not supported"),
    ] {
        says(read(&[(field, value)]), &["m/config.json", field, reason]);
    }
    says(read(&[("block_ffn_dim_multiplier", json!(1e30))]), &["intermediate_size", "not in 1 ..="]);
}

/// Qwen3.5: which layers have a delta net, and what is refused.
#[test]
fn layers_with_delta_nets() {
    let read = |field: &str, value: Value| {
        let mut config = json!({"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "hidden_size": 16,
            "intermediate_size": 24, "num_attention_heads": 4, "num_hidden_layers": 8, "vocab_size": 40});
        config[field] = value;
        ModelConfig::from_json("m/config.json", &config.to_string())
    };
    let has_net = |field: &str, value: Value| -> Vec<bool> {
        let d = read(field, value).unwrap();
        d.layers.iter().map(|layer| layer.delta_net().is_some()).collect()
    };
    let every = |n: usize| -> Vec<bool> { (1..=8).map(|i| i % n != 0).collect() };
    assert_eq!(has_net("full_attention_interval", Value::Null), every(4));
    assert_eq!(has_net("full_attention_interval", json!(2)), every(2));
    assert_eq!(has_net("layer_types", json!(vec!["linear_attention"; 8])), [true; 8]);
    let d = read("layer_types", json!(vec!["full_attention"; 8])).unwrap();
    assert!(d.delta_net().is_none() && d.layers.iter().all(|layer| layer.has_output_gate()));
    assert_eq!((d.norm.weight_offset, d.ropes[0].rotary_dim, d.layers[0].qkv[0].n_out), (1.0, 64, 2 * 4 * 256));
    for (field, value, reason) in [
        ("layer_types", json!(vec!["sliding_attention"; 8]), "(full_attention, linear_attention are)"),
        ("layer_types", json!(["full_attention"]), "has 1 entries for num_hidden_layers = 8"),
        ("full_attention_interval", json!(0), "found 0"),
        ("linear_num_key_heads", json!(5), "5 does not divide linear_num_value_heads = 32"),
        ("linear_conv_kernel_dim", json!(1), "expected at least 2"),
        ("linear_value_head_dim", json!("x"), "expected a whole number"),
        ("num_experts", json!(8), "8 is not supported"),
        ("architectures", json!(["Qwen3_5MoeForCausalLM"]), "`Qwen3_5MoeForCausalLM` is not supported"),
        ("architectures", json!(["Qwen3NextForCausalLM"]), "`Qwen3NextForCausalLM` is not supported"),
    ] {
        says(read(field, value), &["m/config.json", field, reason]);
    }
}

#[test]
fn both_forms_of_config_and_the_checkpoints_of_the_oracles_agree() {
    for family in oracles() {
        let config = family.join("model/config.json");
        let d = describe(&config);
        for other in ["config_v5.json", "config_hub.json"] {
            let other = family.join("model").join(other);
            if other.exists() {
                assert_eq!(describe(&other), d, "{}", other.display());
            }
        }
        let checkpoint = Checkpoint::open(family.join("model")).unwrap();
        checkpoint.verify(&d).unwrap();
        for spec in d.tensors() {
            assert_eq!(checkpoint.read_f32(&spec.name).unwrap().len(), spec.shape.iter().product::<usize>());
        }
    }
}

#[test]
fn a_config_without_architectures_goes_by_its_model_type() {
    let text = LLAMA.to_string();
    let bare = text.replace(r#""architectures": ["LlamaForCausalLM"], "#, "");
    let parse = |text: &str| ModelConfig::from_json("config.json", text).unwrap();
    assert_eq!(parse(&bare), parse(&text));
}

/// A config of a family, from the fixtures, with a field changed.
fn changed(name: &str, field: &str, value: Value) -> Result<ModelConfig, Error> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/configs/{name}.json"));
    let mut config = serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap()["config"].take();
    match value {
        Value::String(s) if s == "ABSENT" => {
            config.as_object_mut().unwrap().remove(field);
        }
        value => config[field] = value,
    }
    ModelConfig::from_json("m/config.json", &config.to_string())
}

#[test]
fn bad_configs_name_the_field() {
    let llama = "smollm2-135m";
    let cases = [
        (
            llama,
            "architectures",
            json!(["FooForCausalLM"]),
            "`FooForCausalLM` is not supported; supported: LlamaForCausalLM",
        ),
        (llama, "architectures", json!(["Qwen3_5MoeForConditionalGeneration"]), "is not supported"),
        (llama, "architectures", json!([]), "expected a list of one name"),
        (llama, "architectures", json!("LlamaForCausalLM"), "expected a list of one name"),
        (llama, "model_type", json!("granite"), "expected `llama` for LlamaForCausalLM, found `granite`"),
        (llama, "hidden_size", json!("ABSENT"), "is missing"),
        (llama, "hidden_size", json!(0), "found 0"),
        (llama, "hidden_size", json!(-576), "found -576"),
        (llama, "hidden_size", json!(576.0), "found 576.0"),
        (llama, "hidden_size", json!(1u64 << 40), "expected a whole number in 1 ..="),
        (llama, "hidden_size", json!("576"), "found \"576\""),
        (llama, "num_hidden_layers", json!(1_000_000_000), "expected a whole number in 1 ..="),
        (llama, "num_attention_heads", json!(0), "found 0"),
        (llama, "num_attention_heads", json!(15), "15 does not divide hidden_size = 576"),
        (llama, "num_key_value_heads", json!(2), "2 does not divide num_attention_heads = 9"),
        (llama, "head_dim", json!(63), "expected an even number"),
        (llama, "vocab_size", json!(null), "is missing"),
        (llama, "rms_norm_eps", json!(0), "expected a number above 0"),
        (llama, "rms_norm_eps", json!(1e-60), "expected a number above 0"),
        (llama, "hidden_act", json!("relu2"), "`relu2` is not supported"),
        (llama, "hidden_act", json!(5), "expected a text"),
        (llama, "attention_bias", json!("yes"), "expected true or false"),
        (llama, "tie_word_embeddings", json!(1), "expected true or false"),
        (llama, "pretraining_tp", json!(2), "2 is not supported"),
        (llama, "quantization_config", json!({"bits": 4}), "an object is not supported"),
        (llama, "residual_multiplier", json!(0.22), "0.22 is not supported"),
        (llama, "num_experts", json!(8), "8 is not supported"),
        (llama, "partial_rotary_factor", json!(0.5), "is not supported for this family"),
        (llama, "rope_theta", json!(-1), "expected a number above 0"),
        (llama, "layer_types", json!(["sliding_attention"]), "has 1 entries for num_hidden_layers = 30"),
        (llama, "layer_types", json!(vec!["sliding_attention"; 30]), "has layers of one kind only"),
        (llama, "layer_types", json!(vec!["chunked_attention"; 30]), "\"chunked_attention\" is not supported"),
        (llama, "final_logit_softcapping", json!(30), "is supported for Gemma"),
        ("mistral-7b-v0.1", "sliding_window", json!(0), "found 0"),
        ("mistral-7b-v0.1", "sliding_window", json!(1.5), "found 1.5"),
        ("gemma-2-2b", "sliding_window", json!(null), "has no value"),
        ("gemma-2-2b", "query_pre_attn_scalar", json!(0), "expected a number above 0"),
        ("gemma-3-1b", "use_bidirectional_attention", json!(true), "true is not supported"),
        ("gemma-3-1b", "attn_logit_softcapping", json!(50), "Gemma2ForCausalLM only"),
        ("gemma-3-1b", "sliding_window_pattern", json!(0), "found 0"),
        ("qwen2-windowed", "max_window_layers", json!("x"), "expected a whole number"),
        ("gpt2", "n_head", json!(7), "7 does not divide n_embd = 768"),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true), "true is not supported"),
        ("gpt2", "add_cross_attention", json!(true), "true is not supported"),
        ("phi-3-mini-4k", "partial_rotary_factor", json!(1.5), "at most all"),
        ("phi-4-mini", "original_max_position_embeddings", json!(1), "expected at least 2"),
        ("smollm3-3b", "no_rope_layers", json!([1, 0]), "expected a list of 36 numbers, each 0 or 1"),
        ("smollm3-3b", "no_rope_layers", json!(vec![2; 36]), "expected a list of 36 numbers, each 0 or 1"),
        ("granite-3.3-2b", "attention_multiplier", json!(0), "expected a number above 0"),
        ("granite-3.3-2b", "attention_bias", json!(true), "is not supported with a residual_multiplier"),
        ("granite-4.0-micro", "num_local_experts", json!(62), "62 is not supported: 0 is"),
        ("granite-4.0-micro", "num_local_experts", json!("ABSENT"), "is missing; 0 is supported"),
        ("granite-4.0-micro", "layer_types", json!("ABSENT"), "Mamba layers are not supported"),
        ("granite-4.0-micro", "layer_types", json!(vec!["mamba"; 40]), "\"mamba\" is not supported"),
        ("granite-4.0-micro", "position_embedding_type", json!("alibi"), "`alibi` is not supported (rope, nope are)"),
        ("olmo-2-1b", "clip_qkv", json!(8), "8 is not supported"),
        ("olmo-3-7b", "rope_theta", json!(10_000), "read differently by transformers 4 and 5"),
        ("olmo-3-7b", "sliding_window", json!(null), "has no value"),
        ("glm-4-9b-0414", "partial_rotary_factor", json!(0.01), "1 rotating dimensions of 128"),
        ("gemma-3-4b", "text_config", json!("ABSENT"), "is missing"),
        ("gemma-3-4b", "text_config", json!({"model_type": "llama"}), "inside Gemma3ForConditionalGeneration"),
        ("gemma-3-4b", "text_config", json!({"hidden_size": 0}), "`text_config.hidden_size`: expected a whole number"),
        ("gemma-3-4b", "model_type", json!("gemma3_text"), "expected `gemma3` for Gemma3ForConditionalGeneration"),
        ("ministral-3-3b", "quantization_config", json!({"quant_method": "fp8"}), "an object is not supported"),
    ];
    for (name, field, value, reason) in cases {
        // A field inside another one is named with it.
        let named =
            if reason.starts_with('`') || reason.contains("inside ") { String::new() } else { format!("`{field}`") };
        says(changed(name, field, value), &["m/config.json", &named, reason]);
    }
    let inner = [
        (json!({"rope_type": "dynamic", "factor": 2.0}), "`rope_scaling.rope_type`: `dynamic` is not supported"),
        (json!({"type": "longrope"}), "`longrope` is supported for Phi3ForCausalLM only"),
        (json!({"type": "yarn"}), "`rope_scaling.factor`: is missing"),
        (json!({"type": "yarn", "factor": 4, "beta_fast": "x"}), "`rope_scaling.beta_fast`: expected a number"),
        (json!({"type": "yarn", "factor": 4, "truncate": 1}), "`rope_scaling.truncate`: expected true or false"),
        (json!({"type": "yarn", "factor": 4, "llama_4_scaling_beta": 0.1}), "is not supported with rope type `yarn`"),
        (json!({"rope_type": 3}), "`rope_scaling.rope_type`: expected a text"),
        (json!({"rope_type": "linear"}), "`rope_scaling.factor`: is missing"),
        (json!({"rope_type": "linear", "factor": 0}), "`rope_scaling.factor`: expected a number above 0"),
        (json!({"rope_type": "default", "mrope_section": [1]}), "`rope_scaling.mrope_section`"),
        (json!([1]), "`rope_scaling`: expected an object"),
        (
            json!({"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4,
                "original_max_position_embeddings": 8}),
            "`rope_scaling.high_freq_factor`: 4 is not above low_freq_factor",
        ),
    ];
    for (value, reason) in inner {
        says(changed(llama, "rope_scaling", value), &["m/config.json", reason]);
    }
    let both = json!({"rope_type": "default", "rope_theta": 5.0});
    says(changed(llama, "rope_parameters", both), &["`rope_theta`", "contradicts `rope_parameters.rope_theta`"]);
}

#[test]
fn a_wrapped_language_model_is_found_by_its_model_type() {
    let parse = |name: &str, architecture: bool| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/configs/{name}.json"));
        let mut config = serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap()["config"].take();
        if !architecture {
            config.as_object_mut().unwrap().remove("architectures");
        }
        ModelConfig::from_json("config.json", &config.to_string()).unwrap()
    };
    for name in ["gemma-3-4b", "ministral-3-3b", "mistral-small-3.1-24b"] {
        let d = parse(name, true);
        assert!(d.wrapped && d.embedding == "model.language_model.embed_tokens.weight", "{name}");
        assert_eq!(parse(name, false), d);
    }
    // The outer configuration decides whether the head is tied, as in transformers 5; then the inner one does.
    let tied = |outer: Value, inner: Value| {
        let text = json!({"model_type": "mistral", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 9, "tie_word_embeddings": inner});
        let config = json!({"model_type": "mistral3", "tie_word_embeddings": outer, "text_config": text});
        ModelConfig::from_json("config.json", &config.to_string()).unwrap().tied
    };
    let (null, yes, no) = (json!(null), json!(true), json!(false));
    assert_eq!(
        [tied(null.clone(), null.clone()), tied(null, no.clone()), tied(yes.clone(), no.clone())],
        [true, false, true]
    );
    assert!(!tied(no, yes));
}

/// YaRN extends the context: a sequence may be as long as the factor times the original context.
#[test]
fn yarn_extends_the_context() {
    let positions = |name: &str| changed(name, "use_cache", json!(true)).unwrap().max_positions;
    assert_eq!(
        [positions("qwen2.5-7b-yarn"), positions("ministral-3-3b"), positions("olmo-3-7b")],
        [131_072, 262_144, 65_536]
    );
}

#[test]
fn a_malformed_config_names_file_and_line() {
    says(ModelConfig::from_json("m/config.json", "{\n\"a\": 1,\n}"), &["m/config.json:3: "]);
    says(ModelConfig::from_json("m/config.json", "[]"), &["m/config.json", "expected a JSON object"]);
    says(ModelConfig::from_json("m/config.json", &"[".repeat(100_000)), &["m/config.json:1: "]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_config_makes_us_panic(
        family in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..14usize), 1..4),
    ) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
        let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        paths.retain(|p| p.extension().unwrap() == "json");
        paths.sort();
        let text = fs::read_to_string(&paths[family.index(paths.len())]).unwrap();
        let mut config = serde_json::from_str::<Value>(&text).unwrap()["config"].take();
        let values = [
            json!(null), json!(0), json!(-1), json!(1), json!(3), json!(u64::MAX), json!(1e300), json!(5e-324),
            json!("x"), json!([]), json!({}), json!(true), json!({"rope_type": "linear", "factor": 1e308}), json!(4095),
        ];
        for (field, value) in changes {
            let fields = config.as_object_mut().unwrap();
            let name = fields.keys().nth(field.index(fields.len())).unwrap().clone();
            fields.insert(name, values[value].clone());
        }
        if let Ok(d) = ModelConfig::from_json("config.json", &config.to_string()) {
            prop_assert!(d.n_heads.is_multiple_of(d.n_kv_heads));
            prop_assert!(!d.tensors().is_empty());
        }
    }
}
