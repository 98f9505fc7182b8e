//! The face of this package without libtorch: nothing of it can be made, and [`Code::new`] says why.

use crate::{Cotangents, Fault, Gradients, Keep, Place, Width};
use compiler::ir::Sizes;
use compiler::model::Model;
use std::convert::Infallible;
use std::sync::Arc;

/// Numbers that go to libtorch and come back.
pub trait Number: Copy {}
impl Number for f32 {}
impl Number for f64 {}

/// A model on libtorch: there is none.
#[derive(Debug)]
pub struct Code(Infallible);

impl Code {
    /// Says that libtorch is not built in.
    ///
    /// # Errors
    /// Always.
    pub fn new(_: Arc<Model>, _: Sizes, _: Width, _: Place) -> Result<Code, Fault> {
        Err(Fault::absent())
    }

    /// Where it computes.
    pub fn place(&self) -> Place {
        match self.0 {}
    }
}

/// A batch on libtorch: there is none.
#[derive(Debug)]
pub struct Tape(Infallible);

impl Tape {
    /// The memory of so many rows.
    pub fn new(code: &Arc<Code>, _: usize, _: Keep) -> Tape {
        match code.0 {}
    }

    /// Starts a sequence.
    ///
    /// # Errors
    /// Never.
    pub fn begin<P: Number, T: Number>(&mut self, _: &[&[P]], _: &[Vec<T>]) -> Result<(), Fault> {
        match self.0 {}
    }

    /// Sets states back.
    ///
    /// # Errors
    /// Never.
    pub fn reset<T: Number>(&mut self, _: Option<&[bool]>, _: &[Vec<T>]) -> Result<(), Fault> {
        match self.0 {}
    }

    /// Runs steps.
    ///
    /// # Errors
    /// Never.
    pub fn forward<T: Number>(&mut self, _: usize, _: &[Vec<T>]) -> Result<(), Fault> {
        match self.0 {}
    }

    /// How many steps have run.
    pub fn steps(&self) -> usize {
        match self.0 {}
    }

    /// An output of the last steps.
    ///
    /// # Errors
    /// Never.
    pub fn outputs<T: Number>(&self, _: usize, _: usize) -> Result<Vec<T>, Fault> {
        match self.0 {}
    }

    /// The penalties of all steps.
    ///
    /// # Errors
    /// Never.
    pub fn penalties<T: Number>(&self) -> Result<Vec<T>, Fault> {
        match self.0 {}
    }

    /// The states.
    ///
    /// # Errors
    /// Never.
    pub fn states<T: Number>(&self) -> Result<Vec<Vec<T>>, Fault> {
        match self.0 {}
    }

    /// The gradients.
    ///
    /// # Errors
    /// Never.
    pub fn backward<T: Number>(&mut self, _: Cotangents<'_, T>) -> Result<Gradients<T>, Fault> {
        match self.0 {}
    }
}
