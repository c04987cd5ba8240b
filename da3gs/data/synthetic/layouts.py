"""The styles of scenes by name; held-out styles are never drawn for training."""

from collections.abc import Callable

from da3gs.data.synthetic.builder import SceneBuilder
from da3gs.data.synthetic.open_air import garden, plaza, ruins, street
from da3gs.data.synthetic.rooms import gallery, kitchen, living_room, office, tabletop, workshop

TRAIN_LAYOUTS: dict[str, Callable[[SceneBuilder], None]] = {
    "living_room": living_room,
    "office": office,
    "kitchen": kitchen,
    "workshop": workshop,
    "tabletop": tabletop,
    "street": street,
    "garden": garden,
    "ruins": ruins,
}
HELD_OUT_LAYOUTS: dict[str, Callable[[SceneBuilder], None]] = {"gallery": gallery, "plaza": plaza}
