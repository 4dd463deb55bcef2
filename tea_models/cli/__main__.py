from tea_models.cli import main

main()
