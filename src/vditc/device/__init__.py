"""What a device does with a package that was made for it: builds its engines, with the standard library and TensorRT alone.

`vditc_device.pyz` of a package holds this and the modules that it imports (`vditc.pipeline.device_archive`). It runs under Python
3.10, which is JetPack 6's.
"""
