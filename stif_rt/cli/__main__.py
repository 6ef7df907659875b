from stif_rt.cli import main

main()
