# Writes the commit that is built into OUTPUT, a header, where it differs from what stands there.
# Run at each build: cmake -DSOURCE=DIR -DOUTPUT=FILE -DCOMMIT=NAME -P write_commit.cmake
if(NOT COMMIT)
  execute_process(COMMAND git -C ${SOURCE} describe --always --abbrev=12 --dirty --exclude *
    OUTPUT_VARIABLE COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(failed)
    set(COMMIT unknown)
  endif()
endif()
set(text "#pragma once\n#define MIXTRAL_COMMIT \"${COMMIT}\"\n")
if(EXISTS ${OUTPUT})
  file(READ ${OUTPUT} before)
endif()
if(NOT "${before}" STREQUAL "${text}")
  file(WRITE ${OUTPUT} "${text}")
endif()
