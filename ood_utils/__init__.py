"""The thin module behind the notebook series. Rooms import downward only; see the README's floor plan."""
