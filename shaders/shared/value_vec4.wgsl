// Elements four at a time, where widths and strides are whole vec4s. `shared/value_f32` defines the same names over one element.

alias Value = vec4<f32>;

const WIDTH = 4u; // elements of a Value

fn sum_of_value(v: Value) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

fn value_of(a: f32, b: f32, c: f32, d: f32) -> Value {
    return vec4<f32>(a, b, c, d);
}
