//! What an expression is: a scalar, a vector, or a value laid out over synapses.
//!
//! A synaptic value may lack a role: `v[j]` has a post axis and no pre axis. It stays a vector in the
//! step IR until it meets the other role, so that `tanh(v[j]) * u[i]` computes `tanh` per neuron.

use crate::ir::{Axes, Axis, Shape, Value};

/// The axes of an expression and what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One number; goes with everything.
    Scalar,
    /// One number per neuron of a population, not yet placed on synapses.
    Vector(Axis),
    /// `v[j]`: one number per post neuron.
    Post(Axis),
    /// `v[i]`: one number per pre neuron.
    Pre(Axis),
    /// One number per synapse.
    Matrix {
        /// The receiving neurons.
        post: Axis,
        /// The sending neurons.
        pre: Axis,
    },
}

/// A value of the step IR with its kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Typed {
    /// The value.
    pub(super) value: Value,
    /// Its kind.
    pub(super) kind: Kind,
}

impl Kind {
    /// The kind of a bare name of this shape.
    pub(super) fn of(shape: Shape) -> Kind {
        match shape {
            Shape::Scalar => Kind::Scalar,
            Shape::Vector(a) => Kind::Vector(a),
            Shape::Matrix { post, pre } => Kind::Matrix { post, pre },
        }
    }

    /// The shape of the value in the step IR.
    pub(super) fn shape(self) -> Shape {
        match self {
            Kind::Scalar => Shape::Scalar,
            Kind::Vector(a) | Kind::Post(a) | Kind::Pre(a) => Shape::Vector(a),
            Kind::Matrix { post, pre } => Shape::Matrix { post, pre },
        }
    }

    /// The kind in the user's words.
    pub(super) fn describe(self, axes: &Axes) -> String {
        match self {
            Kind::Scalar => "a scalar".to_owned(),
            Kind::Vector(a) => format!("a vector over `{}`", axes.text(a)),
            Kind::Post(a) => format!("one value per post neuron, `[j]` over `{}`", axes.text(a)),
            Kind::Pre(a) => format!("one value per pre neuron, `[i]` over `{}`", axes.text(a)),
            Kind::Matrix { post, pre } => format!("a matrix `[{}, {}]`", axes.text(post), axes.text(pre)),
        }
    }

    /// Whether it is laid out over synapses, in full or in part.
    pub(super) fn is_synaptic(self) -> bool {
        matches!(self, Kind::Post(_) | Kind::Pre(_) | Kind::Matrix { .. })
    }

    /// The axis of its post role.
    pub(super) fn post(self) -> Option<Axis> {
        match self {
            Kind::Post(a) | Kind::Matrix { post: a, .. } => Some(a),
            Kind::Scalar | Kind::Vector(_) | Kind::Pre(_) => None,
        }
    }

    /// The axis of its pre role.
    pub(super) fn pre(self) -> Option<Axis> {
        match self {
            Kind::Pre(a) | Kind::Matrix { pre: a, .. } => Some(a),
            Kind::Scalar | Kind::Vector(_) | Kind::Post(_) => None,
        }
    }
}

/// A shape as it is declared: `[N, I]`, or nothing for a scalar.
pub(super) fn shape_text(axes: &Axes, shape: Shape) -> String {
    match shape {
        Shape::Scalar => String::new(),
        Shape::Vector(a) => format!("[{}]", axes.text(a)),
        Shape::Matrix { post, pre } => format!("[{}, {}]", axes.text(post), axes.text(pre)),
    }
}
