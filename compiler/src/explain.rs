//! The pages behind `bpmc explain`: one per code, with what it means, why it matters, a wrong example
//! and a right one.

macro_rules! pages {
    ($($code:literal)*) => {
        /// Every code that has a page, in order.
        pub const CODES: &[&str] = &[$($code),*];

        /// The page of a code, in Markdown.
        pub fn explain(code: &str) -> Option<&'static str> {
            match code {
                $($code => Some(include_str!(concat!("../errors/", $code, ".md"))),)*
                _ => None,
            }
        }
    };
}

pages! {
    "BPM0001"
    "BPM0002"
    "BPM0003"
    "BPM0004"
    "BPM0005"
    "BPM0006"
    "BPM0007"
    "BPM0008"
    "BPM0009"
    "BPM0010"
    "BPM0011"
    "BPM0012"
    "BPM0013"
    "BPM0014"
    "BPM0015"
    "BPM0016"
    "BPM0017"
    "BPM0018"
    "BPM0019"
    "BPM0020"
    "BPM0021"
    "BPM0022"
    "BPM0023"
    "BPM0024"
    "BPM0025"
    "BPM0026"
    "BPM0027"
    "BPM0028"
    "BPM0029"
    "BPM0030"
    "BPM0031"
    "BPM0032"
    "BPM0033"
    "BPM0034"
    "BPM0101"
    "BPM0102"
    "BPM0103"
    "BPM0104"
    "BPM0105"
    "BPM0106"
    "BPM0107"
    "BPM0108"
    "BPM0109"
    "BPM0110"
    "BPM0111"
    "BPM0112"
    "BPM0113"
    "BPM0114"
    "BPM0115"
    "BPM0201"
    "BPM0202"
    "BPM0203"
    "BPM0204"
    "BPM0205"
    "BPM0206"
    "BPM0207"
    "BPM0208"
    "BPM0209"
    "BPM0210"
    "BPM0211"
    "BPM0212"
    "BPM0301"
    "BPM0302"
    "BPM0303"
    "BPM0304"
    "BPM0305"
    "BPM0306"
    "BPM0307"
    "BPM0308"
    "BPM0309"
    "BPM0310"
    "BPM0401"
    "BPM0402"
    "BPM0403"
    "BPM0404"
    "BPM0405"
    "BPM0501"
    "BPM0502"
    "BPM0503"
    "BPM0504"
    "BPM0505"
    "BPM0506"
}
