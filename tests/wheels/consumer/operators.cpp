// A library of the user's, which brings operators into the programs that link it.
int operators() {
  return 1;
}
