// Elements one at a time, for kernels over values that do not depend on their neighbours. `shared/value_vec4` defines the same names over four.

alias Value = f32;

const WIDTH = 1u; // elements of a Value

fn sum_of_value(v: Value) -> f32 {
    return v;
}

// Returns every second of two Values' elements, from the first or from the second on.
fn evens_of(a: Value, b: Value) -> Value {
    return a;
}

fn odds_of(a: Value, b: Value) -> Value {
    return b;
}

// Returns the first or second half of two Values' elements that alternate.
fn first_alternating(evens: Value, odds: Value) -> Value {
    return evens;
}

fn second_alternating(evens: Value, odds: Value) -> Value {
    return odds;
}

// Returns the first of four elements, of which this type has one.
fn value_of(a: f32, b: f32, c: f32, d: f32) -> Value {
    return a;
}
