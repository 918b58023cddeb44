// Marks the symbols that the shared library exports; all others are hidden.
#pragma once

#define TORCH_EXT_API __attribute__((visibility("default")))
