//! Kernels written once for elements and for vec4s: `shaders/shared/value_f32.wgsl` and `value_vec4.wgsl`.

use crate::gpu::Shader;

/// Returns the elements per Value: 4 where all widths, starts and strides are whole vec4s.
pub(super) fn width(sizes: &[usize]) -> usize {
    if sizes.iter().all(|size| size.is_multiple_of(4)) { 4 } else { 1 }
}

/// Makes a shader load Values of `width` elements.
pub(super) fn of_width(shader: Shader, width: usize) -> Shader {
    if width == 4 { shader.substitute("shared/value_f32", "shared/value_vec4") } else { shader }
}

/// Makes a shader load vec4s where all sizes allow it.
pub(super) fn in_values(shader: Shader, sizes: &[usize]) -> Shader {
    of_width(shader, width(sizes))
}

/// Invocations per workgroup of kernels that import `shared/row_sums`.
pub(super) const ROW_WORKGROUP: usize = 64;

/// Returns the invocations that share a row of `width` elements: each loads at least two Values where the row has them.
pub(super) fn row_lanes(width: usize, sizes: &[usize]) -> usize {
    let values = width / self::width(sizes);
    ROW_WORKGROUP.min(1 << (values / 2).max(1).ilog2())
}
