//! Images through their public surface.
