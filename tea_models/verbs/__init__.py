"""What goes across several packages: pull, adopt, add, verify, remove and the doctor's check-up.

These modules stand in a package of their own because `tea_models.pull` is the public function, not a module.
"""
