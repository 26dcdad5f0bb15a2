/* Compiles HLSL with one of Microsoft's compilers, on Windows or under Wine, as wgpu's DX12 backend asks for it.

     x86_64-w64-mingw32-gcc -O1 -o compile_hlsl.exe compile_hlsl.c
     compile_hlsl.exe fxc d3dcompiler_47.dll | compile_hlsl.exe dxc dxcompiler.dll

   Standard input: lines "FILE ENTRY PROFILE", and for DXC further arguments of its own. Standard output: for each a line "ok" or
   "FAIL: message". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

/* COM's tables, as far as they are used. */
typedef struct Blob Blob;
struct Blob {
  struct {
    void *query, *add_ref, *release;
    void *(WINAPI *data)(Blob *);
    SIZE_T(WINAPI *size)(Blob *);
  } *v;
};
typedef struct DxcResult DxcResult;
struct DxcResult {
  struct {
    void *query, *add_ref, *release;
    HRESULT(WINAPI *status)(DxcResult *, HRESULT *);
    void *result;
    HRESULT(WINAPI *errors)(DxcResult *, Blob **);
  } *v;
};
typedef struct {
  const void *text;
  SIZE_T size;
  UINT encoding;
} DxcBuffer;
typedef struct DxcCompiler DxcCompiler;
struct DxcCompiler {
  struct {
    void *query, *add_ref, *release;
    HRESULT(WINAPI *compile)(DxcCompiler *, const DxcBuffer *, LPCWSTR *, UINT, void *, const GUID *, void **);
  } *v;
};
typedef HRESULT(WINAPI *DxcCreate)(const GUID *, const GUID *, void **);
typedef HRESULT(WINAPI *D3DCompile)(const void *, SIZE_T, const char *, const void *, void *, const char *, const char *, UINT, UINT, Blob **, Blob **);

static const GUID DXC_COMPILER = {0x73e22d93, 0xe6ce, 0x47f3, {0xb5, 0xbf, 0xf0, 0x66, 0x4f, 0x39, 0xc1, 0xb0}};
static const GUID DXC_COMPILER3 = {0x228b4687, 0x5a6a, 0x4730, {0x90, 0x0c, 0x97, 0x02, 0xb2, 0x20, 0x3f, 0x54}};
static const GUID DXC_RESULT = {0x58346cda, 0xdde7, 0x4497, {0x94, 0x61, 0x6f, 0x87, 0xaf, 0x5e, 0x06, 0x59}};
static const UINT UTF8 = 65001;
static const UINT ENABLE_STRICTNESS = 1 << 11;

static char *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file) return NULL;
  fseek(file, 0, SEEK_END);
  *size = ftell(file);
  rewind(file);
  char *text = malloc(*size + 1);
  *size = fread(text, 1, *size, file);
  fclose(file);
  return text;
}

static LPCWSTR wide(const char *text) {
  WCHAR *out = malloc(sizeof(WCHAR) * (strlen(text) + 1));
  for (size_t i = 0; (out[i] = (unsigned char)text[i]); i++) {}
  return out;
}

static HRESULT with_dxc(DxcCompiler *dxc, const char *text, size_t size, char **words, int n, Blob **errors) {
  LPCWSTR args[40] = {L"-E", wide(words[1]), L"-T", wide(words[2]), L"-HV", L"2018", L"-no-warnings", L"-Ges"};
  int k = 8;
  for (int i = 3; i < n; i++) args[k++] = wide(words[i]);
  DxcBuffer buffer = {text, size, UTF8};
  DxcResult *result = NULL;
  HRESULT done = dxc->v->compile(dxc, &buffer, args, k, NULL, &DXC_RESULT, (void **)&result);
  if (FAILED(done)) return done;
  HRESULT status = E_FAIL;
  result->v->status(result, &status);
  result->v->errors(result, errors);
  return status;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  int is_dxc = !strcmp(argv[1], "dxc");
  HMODULE library = LoadLibraryA(argv[2]);
  if (!library) {
    fprintf(stderr, "%s cannot be loaded: %lu\n", argv[2], GetLastError());
    return 2;
  }
  D3DCompile fxc = (D3DCompile)(void *)GetProcAddress(library, "D3DCompile");
  DxcCreate create = (DxcCreate)(void *)GetProcAddress(library, "DxcCreateInstance");
  DxcCompiler *dxc = NULL;
  if (is_dxc ? !create || FAILED(create(&DXC_COMPILER, &DXC_COMPILER3, (void **)&dxc)) : !fxc) {
    fprintf(stderr, "%s is no compiler\n", argv[2]);
    return 2;
  }
  char line[4096];
  while (fgets(line, sizeof line, stdin)) {
    char *words[16];
    int n = 0;
    for (char *word = strtok(line, " \r\n"); word && n < 16; word = strtok(NULL, " \r\n")) words[n++] = word;
    if (n < 3) continue;
    size_t size;
    char *text = read_file(words[0], &size);
    Blob *code = NULL, *errors = NULL;
    HRESULT done = E_FAIL;
    if (text && is_dxc) done = with_dxc(dxc, text, size, words, n, &errors);
    if (text && !is_dxc) done = fxc(text, size, words[0], NULL, NULL, words[1], words[2], ENABLE_STRICTNESS, 0, &code, &errors);
    if (SUCCEEDED(done)) {
      puts("ok");
    } else {
      char message[2000] = "";
      if (!text) snprintf(message, sizeof message, "%s cannot be read", words[0]);
      if (errors && errors->v->size(errors)) snprintf(message, sizeof message, "%.*s", (int)errors->v->size(errors), (char *)errors->v->data(errors));
      for (char *c = message; *c; c++)
        if (*c == '\n' || *c == '\r') *c = ' ';
      printf("FAIL: %08lx %s\n", (unsigned long)done, message);
    }
    fflush(stdout);
    free(text);
  }
  return 0;
}
