// Elements one at a time, for kernels over values that do not depend on their neighbours. `shared/value_vec4` defines the same names over four.

alias Value = f32;

const WIDTH = 1u; // elements of a Value

fn sum_of_value(v: Value) -> f32 {
    return v;
}

// Returns the first of four elements, of which this type has one.
fn value_of(a: f32, b: f32, c: f32, d: f32) -> Value {
    return a;
}
