"""300 hostile file names: whatever leaves a folder, hides in it, or names two files, on any system."""

from __future__ import annotations

_TRAVERSAL = [
    *(f"{up}{name}" for up in ("../", "../../", "../../../../", "./", "/", "//", "~/", "a/../",
    "a/../../") for name in ("x", "etc/passwd", "model.safetensors")),
    "..", ".", "...", "a/..", "a/.", "a/./b", "a//b", "a/", "/", "//", "a/b/", "", " ", "~", "~root/x", "./.", ".././x",
    "companions/../x.json", "companions/../../x.json", "companions/./x.json", "companions//x.json", "companions/",
    "companions\\x.json", "companions/..", "../companions/x.json",
    "%2e%2e/x", "..%2fx", "%2e%2e%2fx", "..%5cx", "..%c0%afx", "..;/x", ".%00./x", "a%00b", "a?b", "a#b", "a*b",
]  # fmt: skip
_WINDOWS = [
    *(f"{up}{name}" for up in ("..\\", "..\\..\\", "\\", "\\\\", "C:\\", "C:", "c:/", "\\\\?\\C:\\", "\\\\.\\",
    "a\\..\\")
      for name in ("x", "windows\\win.ini", "model.safetensors")),
    *(f"{device}{tail}" for device in ("con", "CON", "prn", "aux", "Aux", "nul", "NUL", "com1", "COM9", "cOn",
    "LPT0", "lpt1", "Lpt9", "com0")
      for tail in ("", ".txt", ".safetensors", ".tar.gz")),
    "a/nul", "nul/a", "a/con.json/b", "x.", "x. ", "x..", "a./b", "x ", " x", "a /b", "a:b", "x::$DATA", "x:stream",
    "x.json:",
    "file://x", "http://x/y", "\\\\host\\share\\x", "//host/share/x", "a|b", "a<b", "a>b", 'a"b', "CLOCK$", "CONIN$",
]  # fmt: skip
_HIDDEN = [
    ".git", ".git/config", ".gitattributes", ".ssh/authorized_keys", ".bashrc", ".x", "a/.x",
    "a/.git/hooks/post-checkout",
    ".env", ".cache/x", ".huggingface", "..x", "...x", ".partial", ".x.tmp", ".manifest.json.1.tmp", "a/b/.c",
    ".gitmodules", ".netrc", ".config/x",
]  # fmt: skip
_CHARACTERS = [
    *(f"a{chr(code)}b" for code in range(0x20)),
    *(f"x{c}" for c in "\x7f\x80\x85\xa0\xad\u200b\u200e\u2028\u2029\u202e\u2060\ufeff\ufffd\ufffe\U000e0041"),
    *("é", "e\u0301", "ß", "ẞ", "ﬁle", "\u212a", "İ", "ı", "ａ", "．．/x", "／x", "a／b", "∕x", "a∕b", "⁄",
    "\u2024\u2024/x", "Δ", "模型", "😀", "À", "ſ"),
    "a b", "a\tb", "a\nb", "a\r\nb", "x\n", "\nx", "$HOME", "${IFS}", "`id`", "$(id)", "a;b", "a&b", "a|b;c", "a'b",
    "a(b", "a{b", "a[b",
    "a,b", "a=b", "a+b", "a@b", "a!b", "a^b", "\udc80", "a\udcffb", "\ud83d",
    "-rf *", "--help=x y", "{{7*7}}", "{% x %}", "<script>", "%s%n", "%d", "\x1b[31m", "\x1b]0;x\x07",
]  # fmt: skip
_SIZE = [
    "x" * 256,
    "x" * 5000,
    "a/" + "x" * 256,
    "a/b/c/d/e",
    "/".join("abcdef"),
    "a/" * 100 + "x",
    "/".join(["x"] * 5),
]

HOSTILE = list(dict.fromkeys([*_TRAVERSAL, *_WINDOWS, *_HIDDEN, *_CHARACTERS, *_SIZE]))
