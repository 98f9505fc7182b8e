//! The codes of the checker's diagnostics. The first two digits are the family: 01 names, 02 axes,
//! 03 time and roles, 04 gradients, 05 numerics. A code never changes its meaning.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $code;)*
        /// All of them, in order.
        pub const ALL: &[&str] = &[$($code),*];
    };
}

/// The codes of remarks, which are no mistakes.
pub const REMARKS: &[&str] = &[LATENCY, LOCALITY, WRITE_CLASS];

codes! {
    /// A name that nothing declares or defines.
    UNKNOWN_NAME = "BPM0101";
    /// A call of something that is no function and no rule.
    UNKNOWN_FUNCTION = "BPM0102";
    /// A name with two definitions.
    DEFINED_TWICE = "BPM0103";
    /// A name in brackets that is no axis.
    UNKNOWN_AXIS = "BPM0104";
    /// A word that the declaration does not know: a role, an attribute, a distribution.
    UNKNOWN_WORD = "BPM0105";
    /// A call with too few or too many arguments.
    ARGUMENT_COUNT = "BPM0106";
    /// A rule that calls itself.
    RECURSIVE_RULE = "BPM0107";
    /// A name that the language keeps for itself.
    RESERVED_NAME = "BPM0108";
    /// An equation for something that has no equation.
    NOT_ASSIGNABLE = "BPM0109";
    /// A parameter without an initial value.
    MISSING_INITIAL = "BPM0110";
    /// A value that must be known at compile time and is not.
    NOT_CONSTANT = "BPM0111";
    /// A declaration whose parts do not go together.
    BAD_DECLARATION = "BPM0112";
    /// An expression or rule that expands beyond all bounds.
    TOO_LARGE = "BPM0113";
    /// Something declared that nothing uses.
    UNUSED = "BPM0114";
    /// Something that the language has reserved for later.
    NOT_AVAILABLE = "BPM0115";
    /// A layer of a spec that the file does not have.
    UNKNOWN_LAYER = "BPM0116";
    /// Arguments that do not fit the spec of a layer.
    BAD_LAYER = "BPM0117";
    /// A spec that would contain itself.
    LAYER_CYCLE = "BPM0118";
    /// Something of a layer that cannot be read.
    NO_PART = "BPM0119";

    /// Elementwise operands with different axes.
    AXES_DIFFER = "BPM0201";
    /// A vector in a synaptic expression that does not say `[j]` or `[i]`.
    ORIENTATION = "BPM0202";
    /// A contraction over axes that differ.
    CONTRACTION_AXES = "BPM0203";
    /// An operand that `@` or `.` does not take.
    CONTRACTION_OPERAND = "BPM0204";
    /// An index on something that cannot take it.
    BAD_INDEX = "BPM0205";
    /// A transpose that is not the left operand of `@`.
    STRAY_TRANSPOSE = "BPM0206";
    /// An equation whose sides have different axes.
    ASSIGNMENT_AXES = "BPM0207";
    /// An axis expression that is not linear or not positive.
    BAD_AXIS = "BPM0208";
    /// More axes than a declaration may have.
    TOO_MANY_AXES = "BPM0209";
    /// An argument of a kind that the function does not take.
    ARGUMENT_KIND = "BPM0210";
    /// An element, part or slice that a vector does not have.
    OUT_OF_RANGE = "BPM0211";
    /// A target whose brackets are not understood.
    BAD_TARGET = "BPM0212";

    /// Equations that need each other within one step.
    CYCLE = "BPM0301";
    /// A prime on something that has no value after the step.
    STRAY_PRIME = "BPM0302";
    /// An equation for a state without a prime.
    MISSING_PRIME = "BPM0303";
    /// A state without an equation.
    NO_EQUATION = "BPM0304";
    /// A plastic state that does not depend on its old value.
    MEMORYLESS = "BPM0305";
    /// A plastic state that grows without bound.
    UNBOUNDED = "BPM0306";
    /// A trace that never fades.
    TRACE_WITHOUT_DECAY = "BPM0307";
    /// A modulator that modulates nothing.
    MODULATOR_WITHOUT_EFFECT = "BPM0308";
    /// A state that is written and never read.
    STATE_NEVER_READ = "BPM0309";
    /// `hold` of something that cannot be held.
    BAD_HOLD = "BPM0310";
    /// A remark: how late a coincidence takes effect.
    LATENCY = "BPM0311";
    /// A remark: what a synapse must know.
    LOCALITY = "BPM0312";
    /// A remark: the form of a write.
    WRITE_CLASS = "BPM0313";
    /// The sending neuron after the step with the receiving neuron before it.
    REVERSED_COINCIDENCE = "BPM0314";

    /// A parameter without a gradient path.
    NO_GRADIENT = "BPM0401";
    /// A function without a gradient.
    FLAT_FUNCTION = "BPM0402";
    /// Two parameters that keep each other at zero.
    ZERO_SADDLE = "BPM0403";
    /// Two parameters of which only the product matters.
    SCALE_REDUNDANCY = "BPM0404";
    /// A clip that is saturated from the start.
    SATURATED = "BPM0405";

    /// A number outside of the range that it must lie in.
    BAD_RANGE = "BPM0501";
    /// A mixing coefficient that may leave `[0, 1]`.
    NOT_CONVEX = "BPM0502";
    /// A soft clip with steps larger than one.
    SOFTCLIP_STEP = "BPM0503";
    /// A learned decay that nothing keeps between zero and one.
    FREE_DECAY = "BPM0504";
    /// A delta rule whose keys may be too long.
    RAW_KEYS = "BPM0505";
    /// A power that is not a constant, or not real.
    BAD_POWER = "BPM0506";
}
