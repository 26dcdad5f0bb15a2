// σ(v) = 1 / (1 + e^(−v)), without overflow.

import package::shared::value_f32::{Value};

fn sigmoid(v: Value) -> Value {
    return 1.0 / (1.0 + exp(-clamp(v, Value() - 80.0, Value() + 80.0)));
}
