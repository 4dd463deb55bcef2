"""What goes across several packages. A package, because `tea_models.pull` is the public function, not a module."""
