//! Burn beside jointwise: `peer-burn steps TASK.json` or `peer-burn product N`; JSON on standard output. `run.py` calls it.

mod jpo;
mod llama;
mod product;

use std::fs;

use burn::tensor::{Device, DeviceKind};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    #[cfg(feature = "spirv")]
    let device = Device::vulkan(DeviceKind::DefaultDevice);
    #[cfg(not(feature = "spirv"))]
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    let measured = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["steps", path] => {
            let task = serde_json::from_str(&fs::read_to_string(path).expect("the task")).expect("the task");
            serde_json::to_value(jpo::run(&task, &device))
        }
        ["product", n] => serde_json::to_value(product::run(n.parse().expect("a number"), &device)),
        _ => panic!("usage: peer-burn steps TASK.json | product N"),
    };
    let name = device.identity().map(|identity| identity.name);
    println!("{}", serde_json::json!({ "device": name, "measured": measured.expect("numbers") }));
}
