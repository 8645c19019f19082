from hypothesis import settings

# A slow machine is no counterexample: speed is measured in benchmarks/, not in tests.
settings.register_profile("mfdan", deadline=None)
settings.load_profile("mfdan")
