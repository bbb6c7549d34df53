//! Layers that name store paths.
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use environment::layout::Layout;

use self::labels::NamedPaths;
use super::error::Code;
use super::info::Labels;

pub mod labels;

/// What makes layers of store paths.
#[derive(Debug)]
pub struct StoreLayers;

/// A layer that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("the layer cannot be made")]
pub struct LayerError;

impl LayerError {
    /// What it is to the client.
    #[must_use]
    pub fn code(&self) -> Code {
        Code::Internal
    }
}

#[expect(missing_docs)]
impl StoreLayers {
    pub fn new(_layout: &Layout, _root: &Path) -> Self {
        Self
    }
    pub fn assemble(
        &self,
        _: &NamedPaths,
        _: u64,
        _: &Path,
        _: &[PathBuf],
        _: &Labels,
    ) -> Result<bool, LayerError> {
        Ok(false)
    }
    pub fn adopt(&self, _: &NamedPaths, _: u64, _: &Path, _: &[PathBuf]) -> Result<bool, LayerError> {
        Ok(false)
    }
    pub fn release(&self, _: u64) {}
    pub fn sweep(&self, _: &HashSet<u64>) {}
    pub fn lowers(&self) -> Result<[PathBuf; 2], LayerError> {
        Err(LayerError)
    }
}
