"""How a program is measured over real processes, and cases run one after another."""
