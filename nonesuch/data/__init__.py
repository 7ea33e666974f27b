"""Pictures in: named sets, folders, arrays; splits by hash of the content; densities known exactly (toy)."""

from nonesuch.data.dataset import Data, Images
from nonesuch.data.open import open
from nonesuch.data.pair import pair

__all__ = ["Data", "Images", "open", "pair"]
