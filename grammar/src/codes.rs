//! The codes of all syntax errors. A code names one kind of mistake for ever; codes are never reused.

macro_rules! codes {
    ($($name:ident $text:literal $summary:literal;)*) => {
        $(#[doc = $summary] pub const $name: &str = $text;)*

        /// Every code of this crate with its one-line summary, in order.
        pub const ALL: &[(&str, &str)] = &[$(($text, $summary)),*];
    };
}

codes! {
    UNEXPECTED "BPM0001" "Text that does not fit here.";
    UNCLOSED "BPM0002" "A parenthesis or bracket is opened and never closed.";
    UNMATCHED "BPM0003" "A closing bracket has no opening partner.";
    UNCLOSED_SPEC "BPM0004" "The closing brace of a spec is missing.";
    OUTSIDE "BPM0005" "A statement stands outside of a spec.";
    EMPTY "BPM0006" "The file holds neither a spec nor a rule.";
    UNKNOWN_KEYWORD "BPM0007" "A statement begins with an unknown word.";
    RESERVED "BPM0008" "A reserved word is used as a name.";
    NAME_LETTERS "BPM0009" "A name holds letters other than ASCII letters.";
    UNICODE_OPERATOR "BPM0010" "An operator is written with a character other than the ASCII one.";
    FOREIGN_OPERATOR "BPM0011" "An operator of another language.";
    MISSING_EXPRESSION "BPM0012" "An expression is missing.";
    MISSING_OPERATOR "BPM0013" "Two operands stand side by side without an operator.";
    MISSING_COMMA "BPM0014" "A comma is missing in a list.";
    MISSING_ASSIGN "BPM0015" "The `=` of an equation or declaration is missing.";
    WRONG_ASSIGN "BPM0016" "An equation is written with a sign other than `=`.";
    COMPOUND_ASSIGN "BPM0017" "An update such as `+=`, which leaves the time of both sides open.";
    NUMBER "BPM0018" "A number that cannot be read.";
    PRIME_PLACE "BPM0019" "A prime stands where only a name can carry one.";
    DOUBLE_PRIME "BPM0020" "More than one prime.";
    MISSING_NAME "BPM0021" "A name is missing.";
    SAME_LINE "BPM0022" "Two statements on one line without `;`.";
    TOO_DEEP "BPM0023" "An expression is nested too deeply.";
    COMPARISON_CHAIN "BPM0024" "Comparisons in a chain.";
    POWER_CHAIN "BPM0025" "Powers in a chain.";
    NAMED_ARGUMENT "BPM0026" "An argument is passed by name.";
    TUPLE_VALUE "BPM0027" "Several values, or none, in parentheses inside an expression.";
    UNNAMED_OUTPUT "BPM0028" "An output has no name.";
    CLAUSE "BPM0029" "A clause of a declaration is incomplete, repeated or out of place.";
    LOST_DOC "BPM0030" "A `///` comment documents nothing.";
    DOT_ELEMENT "BPM0031" "An element is selected with a dot.";
    RULE_INSIDE "BPM0032" "A rule is defined inside a spec.";
    CHARACTER "BPM0033" "A character that is not part of the language.";
    SPACED_CALL "BPM0034" "A space before the parenthesis of a call or the bracket of an index.";
}
