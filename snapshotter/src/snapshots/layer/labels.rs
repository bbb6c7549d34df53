//! What a layer's labels name.
use super::super::info::Labels;
/// What a layer's labels name.
#[derive(Debug)]
pub struct NamedPaths;
/// Labels that are wrong.
#[derive(Debug, thiserror::Error)]
#[error("wrong labels")]
pub struct ParseLabelsError;
/// Parses labels.
///
/// # Errors
/// Never yet.
pub fn parse(_: &Labels) -> Result<Option<NamedPaths>, ParseLabelsError> {
    Ok(None)
}
