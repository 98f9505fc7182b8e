//! The canonical layout.

fn check(source: &str, expected: &str) {
    let text = grammar::format(source).expect("the text is valid");
    assert_eq!(text, expected);
    assert_eq!(grammar::format(&text).expect("the layout is valid"), text, "not stable");
}

#[test]
fn one_statement_per_line() {
    check(
        "spec s{axis N=3;in u[N];state y[N]=0, H[ N , N ]=0\n\n\n\n  y'=tanh( W@u+b.c )*-x^2;}",
        "spec s {\n  axis N = 3\n  in u[N]\n  state y[N] = 0, H[N,N] = 0\n\n  \
         y' = tanh(W @ u + b . c) * -x^2\n}\n",
    );
}

#[test]
fn comments_and_breaks_stay() {
    check(
        "// top\n\n\n/// doc\nspec s { // open\n# first\n a=b // long\n cc=d //short\n\n z = a // why\n  // own\n   + b\n // last\n}\n// end",
        "// top\n\n/// doc\nspec s {  // open\n  # first\n  a = b   // long\n  cc = d  //short\n\n  z = a  // why\n      \
         // own\n      + b\n  // last\n}\n// end\n",
    );
}

#[test]
fn clauses() {
    check(
        "spec s {\nlearn eta in(0,1)=0.1, a>0=1e-3 gradscale 1/N rank 2\nlearn b~uniform (0,.5)\nhold S,y when -e<(1)\n\
         plastic P[3N,I+N]=0 every 3 episodes unbounded\npenalty(a)\nin mod r\nout y',z=q\nv = (W+alpha[j]*H)^T@h[j] - -k\n}",
        "spec s {\n  learn eta in (0, 1) = 0.1, a > 0 = 1e-3 gradscale 1 / N rank 2\n  learn b ~ uniform(0, .5)\n  \
         hold S, y when -e < (1)\n  plastic P[3N,I+N] = 0 every 3 episodes unbounded\n  penalty (a)\n  in mod r\n  \
         out y', z = q\n  v = (W + alpha[j] * H)^T @ h[j] - -k\n}\n",
    );
}

#[test]
fn parts_of_layers() {
    check(
        "spec s {\nlayer one=cell( u,N=2*M )\nnoise d[M]~dropout(.5)   locked\nz = W@one.h'*one.h . a.b\n}",
        "spec s {\n  layer one = cell(u, N = 2 * M)\n  noise d[M] ~ dropout(.5) locked\n  \
         z = W @ one.h' * one.h . a . b\n}\n",
    );
}

#[test]
fn a_text_with_errors_is_returned_unchanged_as_diagnostics() {
    let diagnostics = grammar::format("spec s { y' = }").expect_err("an operand is missing");
    assert_eq!(diagnostics.len(), 1);
}

#[test]
fn the_shipped_specs_stay_the_same_model() {
    for (path, source) in shipped() {
        let text = grammar::format(&source).unwrap_or_else(|d| panic!("{path}: {d:?}"));
        assert_eq!(grammar::format(&text).expect("valid"), text, "{path}");
        let comments = |s: &str| grammar::parse(s).comments.into_iter().map(|c| c.text).collect::<Vec<_>>();
        assert_eq!(comments(&source), comments(&text), "{path}");
    }
}

fn shipped() -> Vec<(String, String)> {
    let mut folders = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../specs")];
    let mut found = vec![];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "bpm") {
                let text = std::fs::read_to_string(&path).expect("a spec is text");
                found.push((path.display().to_string(), text));
            }
        }
    }
    found
}
