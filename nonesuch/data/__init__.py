"""Pictures in: named sets, folders, arrays; splits by hash of the content; densities known exactly (toy)."""

from nonesuch.data.dataset import Data, Images
from nonesuch.data.open import open

__all__ = ["Data", "Images", "open"]
