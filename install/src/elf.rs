//! Tells static programs from dynamic ones: elf(5).

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Whether a program needs no dynamic linker.
pub fn is_static(path: &Path) -> Result<bool> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    has_no_interpreter(&bytes).with_context(|| format!("{} is not a 64-bit ELF program", path.display()))
}

/// Whether a 64-bit little-endian ELF file has no `PT_INTERP` header.
fn has_no_interpreter(bytes: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    bytes.starts_with(b"\x7fELF\x02\x01").then_some(())?;
    let headers = usize::try_from(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?)).ok()?;
    let size = usize::from(u16::from_le_bytes(bytes.get(54..56)?.try_into().ok()?));
    let count = usize::from(u16::from_le_bytes(bytes.get(56..58)?.try_into().ok()?));
    for index in 0..count {
        let start = headers.checked_add(index * size)?;
        if u32::from_le_bytes(bytes.get(start..start + 4)?.try_into().ok()?) == PT_INTERP {
            return Some(false);
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_text() {
        assert!(!is_static(Path::new("/bin/sh")).unwrap());
        assert!(is_static(Path::new("/etc/passwd")).is_err());
    }
}
