//! `bind IN.wasm OUT_DIR`: what `wasm-bindgen --target web` does, built from its library, which takes a third of the time to compile.

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, input, out] = args.as_slice() else { panic!("usage: bind IN.wasm OUT_DIR") };
    let mut bindgen = wasm_bindgen_cli_support::Bindgen::new();
    bindgen.input_path(input).web(true).expect("a target").typescript(false).omit_default_module_path(false);
    bindgen.remove_name_section(true).remove_producers_section(true);
    bindgen.generate(out).expect("bindings");
}
