from loopconv.cli import main

raise SystemExit(main())
