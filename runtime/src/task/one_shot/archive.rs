//! The Omniglot data set (Lake, Salakhutdinov, Tenenbaum 2015), read from its archives as they are published.
//!
//! A folder has one or more `images_*.zip`; they hold `SET/ALPHABET/characterNN/ID_NN.png`, black ink on white.
//! Archives are pooled. A character that is in several of them, as some are in the two small sets, is one
//! character: otherwise it could be trained on and held out.

use super::characters::{Character, Characters, averaged};
use crate::{Error, files};
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

/// By character and file.
type Found = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

/// The most bytes of an image file, and pixels of an edge: many times of what the data set has.
const LARGEST: u64 = 1 << 20;
const WIDEST: usize = 4096;

/// Reads all archives of a folder.
///
/// # Errors
/// If there is none, one is damaged, or they hold no drawing.
pub(super) fn read(folder: &Path, side: usize) -> Result<Characters, Error> {
    let mut found = Found::new();
    let archives = list(folder)?;
    for path in &archives {
        read_one(path, side, &mut found)?;
    }
    if found.is_empty() {
        let names: Vec<String> = archives.iter().map(|a| format!("`{}`", a.display())).collect();
        let error = Error::usage(format!("no image in {}", names.join(", ")));
        return Err(error.help("images are looked for at SET/ALPHABET/characterNN/ID_NN.png"));
    }
    let character = |(name, drawings): (String, BTreeMap<String, Vec<u8>>)| Character {
        name,
        drawings: drawings.into_values().collect(),
    };
    Ok(Characters { all: found.into_iter().map(character).collect() })
}

/// The archives in a folder, by name.
fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    const HELP: &str = "give the folder of images_background.zip and images_evaluation.zip, or of other sets of \
                        Omniglot: --data FOLDER; without it, characters are generated";
    let entries = std::fs::read_dir(folder).map_err(|e| Error::file("list", folder, &e).help(HELP))?;
    let wanted = |p: &PathBuf| {
        let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with("images_") && name.ends_with(".zip")
    };
    let mut found: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(wanted).collect();
    found.sort();
    match found.is_empty() {
        true => Err(Error::usage(format!("`{}` has no images_*.zip", folder.display())).help(HELP)),
        false => Ok(found),
    }
}

fn read_one(path: &Path, side: usize, found: &mut Found) -> Result<(), Error> {
    let broken = |what: &dyn std::fmt::Display| {
        Error::usage(format!("cannot use `{}`: {what}", path.display())).help("fetch the archive again")
    };
    let bytes = files::read(path)?;
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| broken(&e))?;
    for k in 0..archive.len() {
        let mut entry = archive.by_index(k).map_err(|e| broken(&e))?;
        let name = entry.name().to_string();
        let Some((character, file)) = place(&name) else { continue };
        let drawings = found.entry(character).or_default();
        if drawings.contains_key(&file) {
            continue;
        }
        let mut png = vec![];
        entry.by_ref().take(LARGEST).read_to_end(&mut png).map_err(|e| broken(&format!("{name}: {e}")))?;
        let (pixels, size) = decode(&png).map_err(|what| broken(&format!("{name}: {what}")))?;
        drawings.insert(file, averaged(&pixels, size, side));
    }
    Ok(())
}

/// `ALPHABET/characterNN` and the file of an image; `None` for anything else in an archive.
fn place(name: &str) -> Option<(String, String)> {
    match name.split('/').collect::<Vec<_>>().as_slice() {
        [set, alphabet, character, file] if *set != "__MACOSX" && file.ends_with(".png") => {
            Some((format!("{alphabet}/{character}"), (*file).to_string()))
        }
        _ => None,
    }
}

/// Grey values, height and width.
fn decode(png: &[u8]) -> Result<(Vec<u8>, (usize, usize)), String> {
    let text = |e: png::DecodingError| e.to_string();
    let mut decoder = png::Decoder::new(Cursor::new(png));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(text)?;
    let size = reader.output_buffer_size().ok_or("the image is too large")?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    if width.max(height) > WIDEST {
        return Err(format!("the image has {height} by {width} pixels, more than {WIDEST} at an edge"));
    }
    let mut bytes = vec![0; size];
    let frame = reader.next_frame(&mut bytes).map_err(text)?;
    let samples = frame.color_type.samples();
    // The first number of a pixel: all colours of a grey image are the same.
    let pixels: Vec<u8> = bytes[..frame.buffer_size()].chunks(samples).map(|p| p[0]).collect();
    match pixels.len() == width * height && !pixels.is_empty() {
        true => Ok((pixels, (height, width))),
        false => Err("the image is not complete".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn png(width: u32, height: u32, bits: png::BitDepth, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![];
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(bits);
        encoder.write_header().and_then(|mut w| w.write_image_data(data)).expect("png");
        bytes
    }

    fn zip(path: &Path, entries: &[(&str, &[u8])]) {
        let mut writer = zip::ZipWriter::new(std::fs::File::create(path).expect("file"));
        let deflated =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        for (name, bytes) in entries {
            writer.start_file(*name, deflated).expect("entry");
            writer.write_all(bytes).expect("bytes");
        }
        writer.finish().expect("zip");
    }

    #[test]
    fn archives_are_pooled_and_characters_counted_once() {
        let folder = tempfile::tempdir().expect("folder");
        // Two rows of eight pixels, one bit each: 1 is paper.
        let dark = png(8, 2, png::BitDepth::One, &[0b0000_1111, 0b0000_1111]);
        let pale = png(8, 2, png::BitDepth::One, &[0xff, 0xff]);
        let one = [("a/Latin/character01/1_01.png", &*dark), ("a/readme.txt", b"text")];
        zip(&folder.path().join("images_a.zip"), &one);
        let two = [
            ("b/Latin/character01/1_01.png", &*pale),
            ("b/Latin/character01/1_02.png", &*pale),
            ("b/Greek/character01/7_01.png", &*pale),
            ("__MACOSX/Greek/character01/7_02.png", b"nothing"),
        ];
        zip(&folder.path().join("images_b.zip"), &two);
        zip(&folder.path().join("strokes_b.zip"), &[("b/Greek/character09/7_01.png", b"nothing")]);
        let found = read(folder.path(), 2).expect("read");
        let names: Vec<(&str, usize)> =
            found.all.iter().map(|c| (c.name.as_str(), c.drawings.len())).collect();
        assert_eq!(names, [("Greek/character01", 1), ("Latin/character01", 2)]);
        assert_eq!(found.all[1].drawings, [[0, 255, 0, 255], [255; 4]]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let message = |side| read(folder.path(), side).expect_err("wrong");
        assert!(message(5).message.ends_with("has no images_*.zip"));
        assert!(read(&folder.path().join("none"), 5).expect_err("none").message.starts_with("cannot list"));
        let path = folder.path().join("images_a.zip");
        zip(&path, &[("a/readme.txt", b"text")]);
        assert!(message(5).message.starts_with("no image in `"), "{}", message(5));
        zip(&path, &[("a/Latin/character01/1_01.png", b"no png at all")]);
        let found = message(5).message;
        assert!(found.contains("images_a.zip`: a/Latin/character01/1_01.png: "), "{found}");
        let whole = {
            zip(&path, &[("a/Latin/character01/1_01.png", &png(8, 8, png::BitDepth::Eight, &[9; 64]))]);
            std::fs::read(&path).expect("bytes")
        };
        // Cut off anywhere, or with a damaged byte in the image, it is an error or the same image.
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("write");
            assert!(message(5).message.contains("images_a.zip"), "{cut}");
            let mut damaged = whole.clone();
            damaged[cut] ^= 0x55;
            std::fs::write(&path, &damaged).expect("write");
            let _ = read(folder.path(), 5);
        }
    }
}
