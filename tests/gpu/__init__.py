"""`make gpu`: the session that tests and measures on a GPU, in stages.

__main__.py   the command line; runs stages in turn and writes the record after each
stages.py     the stages as data: what each proves, its command, its time limit
runner.py     one stage: a process with a limit, a log and a file of events
events.py     how a stage tells what it found, line by line, so that a killed one loses nothing
recorder.py   ... as a pytest plugin
results.py    the record: stages, rows, machine, hash of the CUDA sources; merging; JSON
table.py      the record as plain text
status.py     `make gpu-status`: have the sources of this tree run on a GPU?
machine.py    stage: what is here
build.py      stage: CMake's three steps; cpp.py: ctest
reduced.py    stage: one small problem of each kind, without pytest; what the sanitizers run
sanitize.py   stage: compute-sanitizer over canaries.cu, which it must find guilty, then reduced.py
pretend.py    a stand-in for CUDA on the CPU, to rehearse tests where there is no GPU
"""
