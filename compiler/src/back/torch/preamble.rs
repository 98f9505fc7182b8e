//! Functions and classes that an emitted module has at its head, if it needs them.

/// Their names.
pub(super) const NAMES: [&str; 10] = [
    "clip",
    "minimum",
    "maximum",
    "softplus",
    "contract",
    "contract_post",
    "scale_gradient",
    "Interval",
    "Above",
    "Below",
];

/// The source of one of them.
pub(super) fn source(name: &str) -> &'static str {
    match name {
        "clip" => CLIP,
        "minimum" => MINIMUM,
        "maximum" => MAXIMUM,
        "softplus" => SOFTPLUS,
        "contract" => CONTRACT,
        "contract_post" => CONTRACT_POST,
        "scale_gradient" => SCALE_GRADIENT,
        "Interval" => INTERVAL,
        "Above" => ABOVE,
        "Below" => BELOW,
        other => unreachable!("{other} is no helper"),
    }
}

const CLIP: &str = r#"def clip(x: Tensor, low: float, high: float) -> Tensor:
    """min(max(x, low), high); no gradient where it clips, bounds included."""
    return torch.where((low < x) & (x < high), x, x.detach().clamp(low, high))
"#;

const MINIMUM: &str = r#"def minimum(a: Tensor | float, b: Tensor | float) -> Tensor:
    """The smaller one; at a tie the gradient goes to `b`."""
    return torch.where(a < b, a, b)
"#;

const MAXIMUM: &str = r#"def maximum(a: Tensor | float, b: Tensor | float) -> Tensor:
    """The larger one; at a tie the gradient goes to `b`."""
    return torch.where(a > b, a, b)
"#;

const SOFTPLUS: &str = r#"def softplus(x: Tensor) -> Tensor:
    """ln(1 + exp(x)), exact also where x is large."""
    return -nn.functional.logsigmoid(-x)
"#;

const CONTRACT: &str = r#"def contract(matrix: Tensor, vector: Tensor) -> Tensor:
    """Sums over the sending neurons: [batch, post, pre] and [batch, pre] to [batch, post]."""
    return torch.bmm(matrix, vector.unsqueeze(2)).squeeze(2)
"#;

const CONTRACT_POST: &str = r#"def contract_post(vector: Tensor, matrix: Tensor) -> Tensor:
    """Sums over the receiving neurons: [batch, post] and [batch, post, pre] to [batch, pre]."""
    return torch.bmm(vector.unsqueeze(1), matrix).squeeze(1)
"#;

const SCALE_GRADIENT: &str = r#"def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x, with its gradient multiplied by a factor."""
    return x.detach() + factor * (x - x.detach())
"#;

const INTERVAL: &str = r#"class Interval(nn.Module):
    """A parameter between two numbers. The optimiser moves `raw`; a call gives the value."""

    def __init__(self, raw: Tensor, low: float, high: float):
        super().__init__()
        self.raw, self.low, self.high = nn.Parameter(raw), low, high

    def forward(self) -> Tensor:
        return self.low + (self.high - self.low) * torch.sigmoid(self.raw)

    def inverse(self, value: Tensor) -> Tensor:
        """The raw numbers of values."""
        return torch.logit((value - self.low) / (self.high - self.low))
"#;

const ABOVE: &str = r#"class Above(nn.Module):
    """A parameter above a number. The optimiser moves `raw`; a call gives the value."""

    def __init__(self, raw: Tensor, low: float):
        super().__init__()
        self.raw, self.low = nn.Parameter(raw), low

    def forward(self) -> Tensor:
        return self.low + softplus(self.raw)

    def inverse(self, value: Tensor) -> Tensor:
        """The raw numbers of values."""
        above = value - self.low
        return above + torch.log(-torch.expm1(-above))
"#;

const BELOW: &str = r#"class Below(nn.Module):
    """A parameter below a number. The optimiser moves `raw`; a call gives the value."""

    def __init__(self, raw: Tensor, high: float):
        super().__init__()
        self.raw, self.high = nn.Parameter(raw), high

    def forward(self) -> Tensor:
        return self.high - softplus(self.raw)

    def inverse(self, value: Tensor) -> Tensor:
        """The raw numbers of values."""
        below = self.high - value
        return below + torch.log(-torch.expm1(-below))
"#;
