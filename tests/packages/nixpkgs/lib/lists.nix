lib:
rec {
  inherit (builtins) head length elem elemAt filter isList concatLists concatMap all any sort partition groupBy map foldl' genList;

  singleton = x: [ x ];
  toList = x: if isList x then x else [ x ];
  optional = cond: x: if cond then [ x ] else [ ];
  optionals = cond: xs: if cond then xs else [ ];
  flatten = x: if isList x then concatMap flatten x else [ x ];
  forEach = xs: f: map f xs;
  foldr = f: nul: xs:
    let
      count = length xs;
      from = n: if n == count then nul else f (elemAt xs n) (from (n + 1));
    in
    from 0;
  fold = foldr;
  foldl = f: nul: xs: foldl' f nul xs;
  imap0 = f: xs: genList (n: f n (elemAt xs n)) (length xs);
  imap1 = f: xs: genList (n: f (n + 1) (elemAt xs n)) (length xs);
  range = first: last: if first > last then [ ] else genList (n: first + n) (last - first + 1);
  replicate = n: x: genList (_: x) n;
  count = pred: foldl' (n: x: if pred x then n + 1 else n) 0;
  last = xs: elemAt xs (length xs - 1);
  init = xs: take (length xs - 1) xs;
  take = n: sublist 0 n;
  drop = n: xs: sublist n (length xs) xs;
  sublist = start: n: xs:
    let
      total = length xs;
      size = if start >= total then 0 else if start + n > total then total - start else n;
    in
    genList (i: elemAt xs (start + i)) size;
  reverseList = xs: let n = length xs; in genList (i: elemAt xs (n - i - 1)) n;
  remove = x: filter (y: y != x);
  subtractLists = unwanted: filter (x: !(elem x unwanted));
  intersectLists = a: filter (x: elem x a);
  unique = foldl' (seen: x: if elem x seen then seen else seen ++ [ x ]) [ ];
  findFirst = pred: default: xs:
    let found = filter pred xs; in if found == [ ] then default else head found;
  zipListsWith = f: a: b: genList (n: f (elemAt a n) (elemAt b n)) (lib.min (length a) (length b));
  zipLists = zipListsWith (fst: snd: { inherit fst snd; });
  sum = foldl' builtins.add 0;
  naturalSort = sort lib.lessThan;
}
