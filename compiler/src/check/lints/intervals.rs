//! Intervals of real numbers, with ends that may be infinite.

/// All numbers from `low` to `high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Interval {
    /// The lower end.
    pub(super) low: f64,
    /// The upper end.
    pub(super) high: f64,
}

impl Interval {
    /// All real numbers.
    pub(super) const ALL: Interval = Interval { low: f64::NEG_INFINITY, high: f64::INFINITY };

    /// From `low` to `high`; all numbers if one of the two is none.
    pub(super) fn new(low: f64, high: f64) -> Self {
        if low.is_nan() || high.is_nan() {
            return Self::ALL;
        }
        Interval { low: low.min(high), high: high.max(low) }
    }

    /// One number.
    pub(super) fn point(x: f64) -> Self {
        Self::new(x, x)
    }

    /// Whether it is zero alone.
    pub(super) fn is_zero(self) -> bool {
        self.low == 0.0 && self.high == 0.0
    }

    /// Whether it lies in `[low, high]`.
    pub(super) fn within(self, low: f64, high: f64) -> bool {
        low <= self.low && self.high <= high
    }

    /// The largest magnitude.
    pub(super) fn magnitude(self) -> f64 {
        self.low.abs().max(self.high.abs())
    }

    /// The smallest interval around both.
    pub(super) fn hull(self, other: Interval) -> Self {
        Self::new(self.low.min(other.low), self.high.max(other.high))
    }

    /// The image under a function that never falls.
    pub(super) fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self::new(f(self.low), f(self.high))
    }

    /// `-x`
    pub(super) fn negate(self) -> Self {
        Self::new(-self.high, -self.low)
    }

    /// `x + y`
    pub(super) fn plus(self, y: Interval) -> Self {
        Self::new(self.low + y.low, self.high + y.high)
    }

    /// `x y`, where zero times infinity is zero: the ends are bounds of real numbers.
    pub(super) fn times(self, y: Interval) -> Self {
        let product = |a: f64, b: f64| if a == 0.0 || b == 0.0 { 0.0 } else { a * b };
        let corners = [
            product(self.low, y.low),
            product(self.low, y.high),
            product(self.high, y.low),
            product(self.high, y.high),
        ];
        let low = corners.iter().copied().fold(f64::INFINITY, f64::min);
        let high = corners.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Self::new(low, high)
    }

    /// `x²`
    pub(super) fn squared(self) -> Self {
        let top = self.magnitude();
        let bottom =
            if self.low <= 0.0 && self.high >= 0.0 { 0.0 } else { self.low.abs().min(self.high.abs()) };
        Self::new(bottom * bottom, top * top)
    }

    /// `|x|`
    pub(super) fn absolute(self) -> Self {
        let bottom =
            if self.low <= 0.0 && self.high >= 0.0 { 0.0 } else { self.low.abs().min(self.high.abs()) };
        Self::new(bottom, self.magnitude())
    }

    /// `x / y`; all numbers if `y` may be zero.
    pub(super) fn over(self, y: Interval) -> Self {
        if y.low <= 0.0 && y.high >= 0.0 {
            return if self.is_zero() { self } else { Self::ALL };
        }
        self.times(Self::new(1.0 / y.high, 1.0 / y.low))
    }

    /// The interval in brackets.
    pub(super) fn text(self) -> String {
        let end = |x: f64| match x {
            f64::INFINITY => "∞".to_owned(),
            f64::NEG_INFINITY => "-∞".to_owned(),
            x => format!("{}", (x * 1e4).round() / 1e4),
        };
        format!("[{}, {}]", end(self.low), end(self.high))
    }
}
