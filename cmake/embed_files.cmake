# Writes OUTPUT, a source file that holds FILES (a list) as arrays, for serve/embedded_files.h.
# cmake "-DFILES=A;B" -DOUTPUT=FILE -P embed_files.cmake
set(arrays "")
set(rows "")
set(index 0)
foreach(file ${FILES})
  get_filename_component(name ${file} NAME)
  get_filename_component(extension ${file} LAST_EXT)
  if(extension STREQUAL ".html")
    set(type "text/html; charset=utf-8")
  elseif(extension STREQUAL ".css")
    set(type "text/css; charset=utf-8")
  elseif(extension STREQUAL ".json")
    set(type "application/json")
  elseif(extension STREQUAL ".js")
    set(type "text/javascript; charset=utf-8")
  else()
    message(FATAL_ERROR "${file}: no content type is known for ${extension}")
  endif()
  file(READ ${file} bytes HEX)
  string(REGEX REPLACE "(..)" "'\\\\x\\1'," bytes "${bytes}")
  string(APPEND arrays "const char bytes_${index}[] = {${bytes}};\n")
  string(APPEND rows "    {\"${name}\", \"${type}\", {bytes_${index}, sizeof bytes_${index}}},\n")
  math(EXPR index "${index} + 1")
endforeach()
file(WRITE ${OUTPUT} "#include \"serve/embedded_files.h\"

namespace mixtral::serve {
namespace {

${arrays}
const EmbeddedFile files[] = {
${rows}};

}  // namespace

std::span<const EmbeddedFile> embedded_files() { return files; }

}  // namespace mixtral::serve
")
