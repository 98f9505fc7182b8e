//! Tensors in safetensors files.
//!
//! Reading trusts nothing: a corrupt or cut file, an odd type, a wrong name or shape is an error
//! that names the file or the tensor. The files carry one piece of text beside the tensors.

use crate::{Error, files};
use grammar::diag::did_you_mean;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The numbers of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// 32-bit numbers.
    F32(Vec<f32>),
    /// 64-bit numbers.
    F64(Vec<f64>),
}

/// A tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The sizes of its axes, outermost first.
    pub shape: Vec<usize>,
    /// Its numbers.
    pub data: Data,
}

/// Named tensors.
pub type Tensors = BTreeMap<String, Tensor>;

impl Tensor {
    /// A tensor of 32-bit numbers.
    pub fn f32(shape: Vec<usize>, data: Vec<f32>) -> Self {
        Tensor { shape, data: Data::F32(data) }
    }

    /// A tensor of 64-bit numbers.
    pub fn f64(shape: Vec<usize>, data: Vec<f64>) -> Self {
        Tensor { shape, data: Data::F64(data) }
    }

    /// Its numbers, rounded to 32 bits if need be.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Data::F32(x) => x.clone(),
            Data::F64(x) => x.iter().map(|x| *x as f32).collect(),
        }
    }

    /// Its numbers as 64 bits.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(x) => x.iter().map(|x| f64::from(*x)).collect(),
            Data::F64(x) => x.clone(),
        }
    }

    fn dtype(&self) -> Dtype {
        match self.data {
            Data::F32(_) => Dtype::F32,
            Data::F64(_) => Dtype::F64,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match &self.data {
            Data::F32(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::F64(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

/// The bytes of a safetensors file.
///
/// # Errors
/// If a shape does not fit its data, which is our mistake.
pub fn to_bytes(tensors: &Tensors, note: Option<String>) -> Result<Vec<u8>, Error> {
    let bytes: Vec<Vec<u8>> = tensors.values().map(Tensor::bytes).collect();
    let views: Result<Vec<_>, _> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, t), b)| TensorView::new(t.dtype(), t.shape.clone(), b).map(|v| (name, v)))
        .collect();
    let note = note.map(|n| HashMap::from([("bpm".to_string(), n)]));
    views.and_then(|v| serialize(v, note)).map_err(|e| Error::usage(format!("cannot encode tensors: {e}")))
}

/// The tensors of a safetensors file, and its note.
///
/// # Errors
/// What is wrong with the bytes.
pub fn from_bytes(bytes: &[u8]) -> Result<(Tensors, Option<String>), String> {
    let broken = |e| format!("it is no valid safetensors file ({e})");
    let (_, about) = SafeTensors::read_metadata(bytes).map_err(broken)?;
    let note = about.metadata().as_ref().and_then(|m| m.get("bpm").cloned());
    let file = SafeTensors::deserialize(bytes).map_err(broken)?;
    let mut tensors = Tensors::new();
    for (name, view) in file.iter() {
        let data = match view.dtype() {
            Dtype::F32 => Data::F32(numbers(view.data(), f32::from_le_bytes)),
            Dtype::F64 => Data::F64(numbers(view.data(), f64::from_le_bytes)),
            other => {
                return Err(format!("its tensor `{name}` has type {other:?}; only F32 and F64 can be read"));
            }
        };
        tensors.insert(name.to_string(), Tensor { shape: view.shape().to_vec(), data });
    }
    Ok((tensors, note))
}

fn numbers<T, const K: usize>(bytes: &[u8], decode: fn([u8; K]) -> T) -> Vec<T> {
    bytes.as_chunks::<K>().0.iter().map(|chunk| decode(*chunk)).collect()
}

/// Reads a safetensors file.
///
/// # Errors
/// If it cannot be read or decoded.
pub fn read(path: &Path) -> Result<(Tensors, Option<String>), Error> {
    let bytes = files::read(path)?;
    from_bytes(&bytes).map_err(|e| Error::usage(format!("cannot read `{}`: {e}", path.display())))
}

/// Writes a safetensors file, whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub fn write(path: &Path, tensors: &Tensors, note: Option<String>) -> Result<(), Error> {
    files::write(path, &to_bytes(tensors, note)?)
}

/// Takes tensors out of a file by name, checks their shapes, and at the end that none is left.
pub struct Taker {
    place: String,
    left: Tensors,
    asked: Vec<String>,
    problems: Vec<String>,
}

impl Taker {
    /// Starts; `place` names the file in messages.
    pub fn new(place: impl Into<String>, tensors: Tensors) -> Self {
        Taker { place: place.into(), left: tensors, asked: vec![], problems: vec![] }
    }

    /// The shape of a tensor that is still there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.left.get(name).map(|t| &t.shape[..])
    }

    /// The names that are still there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.left.keys().map(String::as_str)
    }

    /// A tensor that may be missing. A wrong shape is noted as a mistake.
    pub fn optional(&mut self, name: &str, shape: &[usize]) -> Option<Tensor> {
        self.asked.push(name.to_string());
        let tensor = self.left.remove(name)?;
        if tensor.shape != shape {
            let (found, wanted) = (brackets(&tensor.shape), brackets(shape));
            self.problems.push(format!(
                "tensor `{name}` in `{}` has shape {found}, but it must have shape {wanted}",
                self.place
            ));
            return None;
        }
        Some(tensor)
    }

    /// A tensor that must be there.
    pub fn required(&mut self, name: &str, shape: &[usize]) -> Option<Tensor> {
        if !self.left.contains_key(name) {
            self.asked.push(name.to_string());
            self.problems.push(format!(
                "`{}` has no tensor `{name}`; it needs one of shape {}",
                self.place,
                brackets(shape)
            ));
            return None;
        }
        self.optional(name, shape)
    }

    /// All mistakes, tensors that nobody asked for included.
    ///
    /// # Errors
    /// If there was any mistake.
    pub fn finish(mut self) -> Result<(), Error> {
        for name in self.left.keys() {
            let candidates = self.asked.iter().map(String::as_str);
            let hint = match did_you_mean(name, candidates) {
                Some(c) => format!("did you mean `{c}`?"),
                None => format!("it can have {}", ticks(&self.asked)),
            };
            self.problems.push(format!("`{}` has an unknown tensor `{name}`; {hint}", self.place));
        }
        match self.problems.is_empty() {
            true => Ok(()),
            false => Err(Error::input(self.problems.join("\n"))),
        }
    }
}

/// A shape as text: `[3, 4]`.
pub fn brackets(shape: &[usize]) -> String {
    let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("[{}]", sizes.join(", "))
}

fn ticks(names: &[String]) -> String {
    match names {
        [] => "no tensors".into(),
        names => names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some() -> Tensors {
        Tensors::from([
            ("W".into(), Tensor::f32(vec![2, 3], vec![1., 2., 3., 4., 5., f32::MIN_POSITIVE])),
            ("eta".into(), Tensor::f64(vec![], vec![0.1])),
        ])
    }

    #[test]
    fn a_file_reads_as_written() {
        let bytes = to_bytes(&some(), Some("{}".into())).expect("bytes");
        assert_eq!(from_bytes(&bytes).expect("read"), (some(), Some("{}".into())));
        assert_eq!(bytes, to_bytes(&some(), Some("{}".into())).expect("bytes"));
    }

    #[test]
    fn mistakes_name_the_tensor_and_both_shapes() {
        let mut t = Taker::new("p.safetensors", some());
        assert!(t.required("W", &[3, 2]).is_none());
        assert!(t.required("ets", &[]).is_none());
        let error = t.finish().expect_err("mistakes");
        assert_eq!(
            error.message,
            "tensor `W` in `p.safetensors` has shape [2, 3], but it must have shape [3, 2]\n\
             `p.safetensors` has no tensor `ets`; it needs one of shape []\n\
             `p.safetensors` has an unknown tensor `eta`; did you mean `ets`?"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = from_bytes(&bytes);
        }

        #[test]
        fn damaged_files_do_not_panic(at in 0usize..200, value in any::<u8>(), cut in 0usize..200) {
            let mut bytes = to_bytes(&some(), None).expect("bytes");
            let at = at % bytes.len();
            bytes[at] = value;
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            let _ = from_bytes(&bytes);
        }
    }
}
