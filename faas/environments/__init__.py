"""Runtime profiles and what they become: a hash-locked file, then a virtual environment. The only home of uv; knows no node, no function, no worker."""
