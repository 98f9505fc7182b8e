//! Numbers to libtorch and back. Narrowing and widening happen there, so 64 bits at the edge lose nothing of either
//! width.

use tch::{Device, Kind, TchError, Tensor};

/// Numbers that go to libtorch and come back.
pub trait Number: tch::kind::Element {}
impl Number for f32 {}
impl Number for f64 {}

/// A tensor of these sizes.
pub(crate) fn put<T: Number>(x: &[T], sizes: &[usize], place: (Kind, Device)) -> Result<Tensor, TchError> {
    Tensor::f_from_slice(x)?.f_to_device(place.1)?.f_to_kind(place.0)?.f_reshape(&dims(sizes)[..])
}

/// The elements of a tensor, row-major.
pub(crate) fn get<T: Number>(tensor: &Tensor) -> Result<Vec<T>, TchError> {
    let count = tensor.numel();
    let mut numbers = vec![T::ZERO; count];
    let tensor = tensor.f_detach()?.f_to_kind(T::KIND)?.f_to_device(Device::Cpu)?.f_contiguous()?;
    tensor.f_copy_data(&mut numbers, count)?;
    Ok(numbers)
}

/// Sizes as libtorch takes them.
pub(crate) fn dims(sizes: &[usize]) -> Vec<i64> {
    sizes.iter().map(|n| *n as i64).collect()
}
