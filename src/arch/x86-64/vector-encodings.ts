/**
 * Which VEX, EVEX and XOP encodings exist. Made by `test/oracle/decoder/make-vector-encodings.ts` from the catalogue of
 * instructions in iced-x86 (MIT licence); held against binutils' objdump by `test/oracle/decoder/objdump.test.ts`.
 *
 * Keys are the encoding, the opcode map and the mandatory prefix (n none, 6 66h, 3 F3h, 2 F2h). Entries are
 * OPCODE:VARIANT/VARIANT..., in hex; a variant is PROPERTIES,LENGTHS[,GROUPS]: a mask of bit W * 4 + L'L, and a mask of the
 * values of ModRM.reg. The letters of the properties are explained where they are read, in `vector.ts`.
 */
export const VECTOR_ENCODINGS: Readonly<Record<string, string>> = {
  'evex 1 2':
    '10:moz,70/rvoz,70 11:mo,70/rvoz,70 12:mroz,70 2a:mrve,77 2c:mrga,77 2d:mrge,77 51:mrveoz,70 ' +
    '58:mrveoz,70 59:mrveoz,70 5a:mrveoz,70 5c:mrveoz,70 5d:mrvaoz,70 5e:mrveoz,70 5f:mrvaoz,70 ' +
    '6f:mroz,77 70:mroz,77 78:mrga,77 79:mrge,77 7a:mrbeoz,44/mrboz,33 7b:mrve,77 7f:mroZ,77 ' +
    'c2:mrvkao,70 e6:mrbeoz,40/mrboz,30',
  'evex 1 3':
    '10:moz,7/rvoz,7 11:mo,7/rvoz,7 12:mroz,7 16:mroz,7 2a:mrve,77 2c:mrga,77 2d:mrge,77 51:mrveoz,7 ' +
    '58:mrveoz,7 59:mrveoz,7 5a:mrvaoz,7 5b:mrbaoz,4/mrboz,3 5c:mrveoz,7 5d:mrvaoz,7 5e:mrveoz,7 ' +
    '5f:mrvaoz,7 6f:mroz,77 70:mroz,77 78:mrga,77 79:mrge,77 7a:mrbeoz,44/mrboz,33 7b:mrve,77 7e:mr,10 ' +
    '7f:mroZ,77 c2:mrvkao,7 e6:mrbeoz,44/mrboz,33',
  'evex 1 6':
    '10:mroz,70 11:mroZ,70 12:mv,10 13:m,10 14:mrvboz,70 15:mrvboz,70 16:mv,10 17:m,10 28:mroz,70 ' +
    '29:mroZ,70 2b:m,70 2e:mra,70 2f:mra,70 51:mrbeoz,40/mrboz,30 54:mrvboz,70 55:mrvboz,70 56:mrvboz,70 ' +
    '57:mrvboz,70 58:mrvbeoz,40/mrvboz,30 59:mrvbeoz,40/mrvboz,30 5a:mrbeoz,40/mrboz,30 ' +
    '5b:mrbeoz,4/mrboz,3 5c:mrvbeoz,40/mrvboz,30 5d:mrvbaoz,40/mrvboz,30 5e:mrvbeoz,40/mrvboz,30 ' +
    '5f:mrvbaoz,40/mrvboz,30 60:mrvoz,77 61:mrvoz,77 62:mrvboz,7 63:mrvoz,77 64:mrvko,77 65:mrvko,77 ' +
    '66:mrvkbo,7 67:mrvoz,77 68:mrvoz,77 69:mrvoz,77 6a:mrvboz,7 6b:mrvboz,7 6c:mrvboz,70 6d:mrvboz,70 ' +
    '6e:mr,11 6f:mroz,77 70:mrboz,7 71:mrvoz,77,54 72:mrvboz,7,44/mrvboz,77,13 73:mrv,77,88/mrvboz,70,44 ' +
    '74:mrvko,77 75:mrvko,77 76:mrvkbo,7 78:mrbaoz,44/mrboz,33 79:mrbeoz,44/mrboz,33 ' +
    '7a:mrbaoz,44/mrboz,33 7b:mrbeoz,44/mrboz,33 7e:mr,11 7f:mroZ,77 c2:mrvkbao,40/mrvkbo,30 c4:mrv,11 ' +
    'c5:rg,11 c6:mrvboz,70 d1:mrvoz,77 d2:mrvoz,7 d3:mrvoz,70 d4:mrvboz,70 d5:mrvoz,77 d6:mr,10 ' +
    'd8:mrvoz,77 d9:mrvoz,77 da:mrvoz,77 db:mrvboz,77 dc:mrvoz,77 dd:mrvoz,77 de:mrvoz,77 df:mrvboz,77 ' +
    'e0:mrvoz,77 e1:mrvoz,77 e2:mrvoz,77 e3:mrvoz,77 e4:mrvoz,77 e5:mrvoz,77 e6:mrbaoz,40/mrboz,30 ' +
    'e7:m,7 e8:mrvoz,77 e9:mrvoz,77 ea:mrvoz,77 eb:mrvboz,77 ec:mrvoz,77 ed:mrvoz,77 ee:mrvoz,77 ' +
    'ef:mrvboz,77 f1:mrvoz,77 f2:mrvoz,7 f3:mrvoz,70 f4:mrvboz,70 f5:mrvoz,77 f6:mrv,77 f8:mrvoz,77 ' +
    'f9:mrvoz,77 fa:mrvboz,7 fb:mrvboz,70 fc:mrvoz,77 fd:mrvoz,77 fe:mrvboz,7',
  'evex 1 n':
    '10:mroz,7 11:mroZ,7 12:mv,1/rv,1 13:m,1 14:mrvboz,7 15:mrvboz,7 16:mv,1/rv,1 17:m,1 28:mroz,7 ' +
    '29:mroZ,7 2b:m,7 2e:mra,7 2f:mra,7 51:mrbeoz,4/mrboz,3 54:mrvboz,7 55:mrvboz,7 56:mrvboz,7 ' +
    '57:mrvboz,7 58:mrvbeoz,4/mrvboz,3 59:mrvbeoz,4/mrvboz,3 5a:mrbaoz,4/mrboz,3 5b:mrbeoz,44/mrboz,33 ' +
    '5c:mrvbeoz,4/mrvboz,3 5d:mrvbaoz,4/mrvboz,3 5e:mrvbeoz,4/mrvboz,3 5f:mrvbaoz,4/mrvboz,3 ' +
    '78:mrbaoz,44/mrboz,33 79:mrbeoz,44/mrboz,33 c2:mrvkbao,4/mrvkbo,3 c6:mrvboz,7',
  'evex 2 2': '52:mvoz,4 53:mvoz,4 68:mrvkb,77 72:mrvboz,7 9a:mvoz,4 9b:mvoz,7 aa:mvoz,4 ab:mvoz,7',
  'evex 2 3':
    '10:mroZ,7 11:mroZ,7 12:mroZ,7 13:mroZ,7 14:mroZ,7 15:mroZ,7 20:mroZ,7 21:mroZ,7 22:mroZ,7 23:mroZ,7 ' +
    '24:mroZ,7 25:mroZ,7 26:mrvko,77 27:mrvkbo,77 28:r,77 29:rk,77 2a:r,70 30:mroZ,7 31:mroZ,7 32:mroZ,7 ' +
    '33:mroZ,7 34:mroZ,7 35:mroZ,7 38:r,77 39:rk,77 3a:r,7 52:mrvboz,7 72:mrboz,7',
  'evex 2 6':
    '00:mrvoz,77 04:mrvoz,77 0b:mrvoz,77 0c:mrvboz,7 0d:mrvboz,70 10:mrvoz,70 11:mrvoz,70 12:mrvoz,70 ' +
    '13:mraoz,4/mroz,3 14:mrvboz,77 15:mrvboz,77 16:mrvboz,66 18:mroz,7 19:mroz,66 1a:moz,66 1b:moz,44 ' +
    '1c:mroz,77 1d:mroz,77 1e:mrboz,7 1f:mrboz,70 20:mroz,77 21:mroz,77 22:mroz,77 23:mroz,77 24:mroz,77 ' +
    '25:mroz,7 26:mrvko,77 27:mrvkbo,77 28:mrvboz,70 29:mrvkbo,70 2a:m,7 2b:mrvboz,7 ' +
    '2c:mrvbeoz,44/mrvboz,33 2d:mrveoz,77 30:mroz,77 31:mroz,77 32:mroz,77 33:mroz,77 34:mroz,77 ' +
    '35:mroz,7 36:mrvboz,66 37:mrvkbo,70 38:mrvoz,77 39:mrvboz,77 3a:mrvoz,77 3b:mrvboz,77 3c:mrvoz,77 ' +
    '3d:mrvboz,77 3e:mrvoz,77 3f:mrvboz,77 40:mrvboz,77 42:mrbaoz,44/mrboz,33 43:mrvaoz,77 44:mrboz,77 ' +
    '45:mrvboz,77 46:mrvboz,77 47:mrvboz,77 4c:mrboz,77 4d:mrvoz,77 4e:mrboz,77 4f:mrvoz,77 50:mrvboz,7 ' +
    '51:mrvboz,7 52:mrvboz,7 53:mrvboz,7 54:mroz,77 55:mrboz,77 58:mroz,7 59:mroz,77 5a:moz,66 5b:moz,44 ' +
    '62:mroz,77 63:mroZ,77 64:mrvboz,77 65:mrvboz,77 66:mrvoz,77 70:mrvoz,70 71:mrvboz,77 72:mrvoz,70 ' +
    '73:mrvboz,77 75:mrvoz,77 76:mrvboz,77 77:mrvboz,77 78:mroz,7 79:mroz,7 7a:roz,7 7b:roz,7 7c:roz,77 ' +
    '7d:mrvoz,77 7e:mrvboz,77 7f:mrvboz,77 83:mrvboz,70 88:mroz,77 89:mroz,77 8a:mroZ,77 8b:mroZ,77 ' +
    '8d:mrvoz,77 8f:mrvko,7 90:msOu,77 91:msOu,77 92:msOu,77 93:msOu,77 96:mrvbeoz,44/mrvboz,33 ' +
    '97:mrvbeoz,44/mrvboz,33 98:mrvbeoz,44/mrvboz,33 99:mrveoz,77 9a:mrvbeoz,44/mrvboz,33 9b:mrveoz,77 ' +
    '9c:mrvbeoz,44/mrvboz,33 9d:mrveoz,77 9e:mrvbeoz,44/mrvboz,33 9f:mrveoz,77 a0:msO,77 a1:msO,77 ' +
    'a2:msO,77 a3:msO,77 a6:mrvbeoz,44/mrvboz,33 a7:mrvbeoz,44/mrvboz,33 a8:mrvbeoz,44/mrvboz,33 ' +
    'a9:mrveoz,77 aa:mrvbeoz,44/mrvboz,33 ab:mrveoz,77 ac:mrvbeoz,44/mrvboz,33 ad:mrveoz,77 ' +
    'ae:mrvbeoz,44/mrvboz,33 af:mrveoz,77 b4:mrvboz,70 b5:mrvboz,70 b6:mrvbeoz,44/mrvboz,33 ' +
    'b7:mrvbeoz,44/mrvboz,33 b8:mrvbeoz,44/mrvboz,33 b9:mrveoz,77 ba:mrvbeoz,44/mrvboz,33 bb:mrveoz,77 ' +
    'bc:mrvbeoz,44/mrvboz,33 bd:mrveoz,77 be:mrvbeoz,44/mrvboz,33 bf:mrveoz,77 c4:mrboz,77 c6:msO,44,66 ' +
    'c7:msO,44,66 c8:mrbaoz,44 ca:mrbaoz,44 cb:mrvaoz,77 cc:mrbaoz,44 cd:mrvaoz,77 cf:mrvoz,7 dc:mrv,77 ' +
    'dd:mrv,77 de:mrv,77 df:mrv,77',
  'evex 3 3': 'c2:mrvkao,7',
  'evex 3 6':
    '00:mrboz,60 01:mrboz,60 03:mrvboz,77 04:mrboz,7 05:mrboz,70 08:mrbaoz,4/mrboz,3 ' +
    '09:mrbaoz,40/mrboz,30 0a:mrvaoz,7 0b:mrvaoz,70 0f:mrvoz,77 14:mr,11 15:mr,11 16:mr,11 17:mr,11 ' +
    '18:mrvoz,66 19:mroZ,66 1a:mrvoz,44 1b:mroZ,44 1d:mraoZ,4/mroZ,3 1e:mrvkbo,77 1f:mrvkbo,77 20:mrv,11 ' +
    '21:mrv,1 22:mrv,11 23:mrvboz,66 25:mrvboz,77 26:mrbaoz,44/mrboz,33 27:mrvaoz,77 38:mrvoz,66 ' +
    '39:mroZ,66 3a:mrvoz,44 3b:mroZ,44 3e:mrvko,77 3f:mrvko,77 42:mrvoz,7 43:mrvboz,66 44:mrv,77 ' +
    '50:mrvbaoz,44/mrvboz,33 51:mrvaoz,77 54:mrvbaoz,44/mrvboz,33 55:mrvaoz,77 56:mrbaoz,44/mrboz,33 ' +
    '57:mrvaoz,77 66:mrkbo,77 67:mrko,77 70:mrvoz,70 71:mrvboz,77 72:mrvoz,70 73:mrvboz,77 ce:mrvboz,70 ' +
    'cf:mrvboz,70',
  'evex 3 n':
    '08:mrbaoz,4/mrboz,3 0a:mrvaoz,7 26:mrbaoz,4/mrboz,3 27:mrvaoz,7 56:mrbaoz,4/mrboz,3 57:mrvaoz,7 ' +
    '66:mrkbo,7 67:mrko,7 c2:mrvkbao,4/mrvkbo,3',
  'evex 5 2': '5a:mrveoz,70 7a:mrbeoz,44/mrboz,33 7d:mrbeoz,4/mrboz,3',
  'evex 5 3':
    '10:moz,7/rvoz,7 11:mo,7/rvoz,7 2a:mrve,77 2c:mrga,77 2d:mrge,77 51:mrveoz,7 58:mrveoz,7 59:mrveoz,7 ' +
    '5a:mrvaoz,7 5b:mrbaoz,4/mrboz,3 5c:mrveoz,7 5d:mrvaoz,7 5e:mrveoz,7 5f:mrvaoz,7 78:mrga,77 ' +
    '79:mrge,77 7b:mrve,77 7d:mrbeoz,4/mrboz,3',
  'evex 5 6':
    '1d:mrbeoz,4/mrboz,3 5a:mrbeoz,40/mrboz,30 5b:mrbeoz,4/mrboz,3 6e:mr,11 78:mrbaoz,4/mrboz,3 ' +
    '79:mrbeoz,4/mrboz,3 7a:mrbaoz,4/mrboz,3 7b:mrbeoz,4/mrboz,3 7c:mrbaoz,4/mrboz,3 7d:mrbeoz,4/mrboz,3 ' +
    '7e:mr,11',
  'evex 5 n':
    '1d:mrveoz,7 2e:mra,7 2f:mra,7 51:mrbeoz,4/mrboz,3 58:mrvbeoz,4/mrvboz,3 59:mrvbeoz,4/mrvboz,3 ' +
    '5a:mrbaoz,4/mrboz,3 5b:mrbeoz,44/mrboz,33 5c:mrvbeoz,4/mrvboz,3 5d:mrvbaoz,4/mrvboz,3 ' +
    '5e:mrvbeoz,4/mrvboz,3 5f:mrvbaoz,4/mrvboz,3 78:mrbaoz,4/mrboz,3 79:mrbeoz,4/mrboz,3 ' +
    '7c:mrbaoz,4/mrboz,3 7d:mrbeoz,4/mrboz,3',
  'evex 6 2': '56:mrvbeozd,4/mrvbozd,3 57:mrveozd,7 d6:mrvbeozd,4/mrvbozd,3 d7:mrveozd,7',
  'evex 6 3': '56:mrvbeozd,4/mrvbozd,3 57:mrveozd,7 d6:mrvbeozd,4/mrvbozd,3 d7:mrveozd,7',
  'evex 6 6':
    '13:mrbaoz,4/mrboz,3 2c:mrvbeoz,4/mrvboz,3 2d:mrveoz,7 42:mrbaoz,4/mrboz,3 43:mrvaoz,7 4c:mrboz,7 ' +
    '4d:mrvoz,7 4e:mrboz,7 4f:mrvoz,7 96:mrvbeoz,4/mrvboz,3 97:mrvbeoz,4/mrvboz,3 98:mrvbeoz,4/mrvboz,3 ' +
    '99:mrveoz,7 9a:mrvbeoz,4/mrvboz,3 9b:mrveoz,7 9c:mrvbeoz,4/mrvboz,3 9d:mrveoz,7 ' +
    '9e:mrvbeoz,4/mrvboz,3 9f:mrveoz,7 a6:mrvbeoz,4/mrvboz,3 a7:mrvbeoz,4/mrvboz,3 a8:mrvbeoz,4/mrvboz,3 ' +
    'a9:mrveoz,7 aa:mrvbeoz,4/mrvboz,3 ab:mrveoz,7 ac:mrvbeoz,4/mrvboz,3 ad:mrveoz,7 ' +
    'ae:mrvbeoz,4/mrvboz,3 af:mrveoz,7 b6:mrvbeoz,4/mrvboz,3 b7:mrvbeoz,4/mrvboz,3 b8:mrvbeoz,4/mrvboz,3 ' +
    'b9:mrveoz,7 ba:mrvbeoz,4/mrvboz,3 bb:mrveoz,7 bc:mrvbeoz,4/mrvboz,3 bd:mrveoz,7 ' +
    'be:mrvbeoz,4/mrvboz,3 bf:mrveoz,7',
  'evex 6 n': '13:mrvaoz,7',
  'vex 1 2':
    '10:m,33/rv,33 11:m,33/rv,33 12:mr,33 2a:mrv,33 2c:mrg,33 2d:mrg,33 51:mrv,33 58:mrv,33 59:mrv,33 ' +
    '5a:mrv,33 5c:mrv,33 5d:mrv,33 5e:mrv,33 5f:mrv,33 70:mr,33 7c:mrv,33 7d:mrv,33 92:rk,11 93:rg,11 ' +
    'c2:mrv,33 d0:mrv,33 e6:mr,33 f0:m,33',
  'vex 1 3':
    '10:m,33/rv,33 11:m,33/rv,33 12:mr,33 16:mr,33 2a:mrv,33 2c:mrg,33 2d:mrg,33 51:mrv,33 52:mrv,33 ' +
    '53:mrv,33 58:mrv,33 59:mrv,33 5a:mrv,33 5b:mr,33 5c:mrv,33 5d:mrv,33 5e:mrv,33 5f:mrv,33 6f:mr,33 ' +
    '70:mr,33 7e:mr,11 7f:mr,33 c2:mrv,33 e6:mr,33',
  'vex 1 6':
    '10:mr,33 11:mr,33 12:mv,11 13:m,11 14:mrv,33 15:mrv,33 16:mv,11 17:m,11 28:mr,33 29:mr,33 2b:m,33 ' +
    '2e:mr,33 2f:mr,33 41:rwk,22 42:rwk,22 44:rk,11 45:rwk,22 46:rwk,22 47:rwk,22 4a:rwk,22 4b:rwk,2 ' +
    '50:rg,33 51:mr,33 54:mrv,33 55:mrv,33 56:mrv,33 57:mrv,33 58:mrv,33 59:mrv,33 5a:mr,33 5b:mr,33 ' +
    '5c:mrv,33 5d:mrv,33 5e:mrv,33 5f:mrv,33 60:mrv,33 61:mrv,33 62:mrv,33 63:mrv,33 64:mrv,33 65:mrv,33 ' +
    '66:mrv,33 67:mrv,33 68:mrv,33 69:mrv,33 6a:mrv,33 6b:mrv,33 6c:mrv,33 6d:mrv,33 6e:mr,11 6f:mr,33 ' +
    '70:mr,33 71:rv,33,54 72:rv,33,54 73:rv,33,cc 74:mrv,33 75:mrv,33 76:mrv,33 7c:mrv,33 7d:mrv,33 ' +
    '7e:mr,11 7f:mr,33 90:mrk,11 91:mk,11 92:rk,1 93:rg,1 98:rk,11 99:rk,11 c2:mrv,33 c4:mrv,11 c5:rg,11 ' +
    'c6:mrv,33 d0:mrv,33 d1:mrv,33 d2:mrv,33 d3:mrv,33 d4:mrv,33 d5:mrv,33 d6:mr,11 d7:rg,33 d8:mrv,33 ' +
    'd9:mrv,33 da:mrv,33 db:mrv,33 dc:mrv,33 dd:mrv,33 de:mrv,33 df:mrv,33 e0:mrv,33 e1:mrv,33 e2:mrv,33 ' +
    'e3:mrv,33 e4:mrv,33 e5:mrv,33 e6:mr,33 e7:m,33 e8:mrv,33 e9:mrv,33 ea:mrv,33 eb:mrv,33 ec:mrv,33 ' +
    'ed:mrv,33 ee:mrv,33 ef:mrv,33 f1:mrv,33 f2:mrv,33 f3:mrv,33 f4:mrv,33 f5:mrv,33 f6:mrv,33 f7:r,11 ' +
    'f8:mrv,33 f9:mrv,33 fa:mrv,33 fb:mrv,33 fc:mrv,33 fd:mrv,33 fe:mrv,33',
  'vex 1 n':
    '10:mr,33 11:mr,33 12:mv,11/rv,11 13:m,11 14:mrv,33 15:mrv,33 16:mv,11/rv,11 17:m,11 28:mr,33 ' +
    '29:mr,33 2b:m,33 2e:mr,33 2f:mr,33 41:rwk,22 42:rwk,22 44:rk,11 45:rwk,22 46:rwk,22 47:rwk,22 ' +
    '4a:rwk,22 4b:rwk,22 50:rg,33 51:mr,33 52:mr,33 53:mr,33 54:mrv,33 55:mrv,33 56:mrv,33 57:mrv,33 ' +
    '58:mrv,33 59:mrv,33 5a:mr,33 5b:mr,33 5c:mrv,33 5d:mrv,33 5e:mrv,33 5f:mrv,33 77:,33 90:mrk,11 ' +
    '91:mk,11 92:rk,1 93:rg,1 98:rk,11 99:rk,11 ae:m,11,c c2:mrv,33 c6:mrv,33',
  'vex 2 2':
    '49:xk,1 4b:mkS,1 50:mrv,3 51:mrv,3 5c:rvkTu,1 5e:rvkTu,1 b0:m,3 cb:rv,2 cc:r,2 cd:r,2 da:mrv,3 ' +
    'f5:mrVg,11 f6:mrVg,11 f7:mrVg,11',
  'vex 2 3':
    '4b:mkS,1 50:mrv,3 51:mrv,3 5c:rvkTu,1 5e:rvkTu,1 72:mr,3 b0:m,3 b1:m,3 d2:mrv,3 d3:mrv,3 da:mrv,3 ' +
    'f5:mrVg,11 f7:mrVg,11',
  'vex 2 6':
    '00:mrv,33 01:mrv,33 02:mrv,33 03:mrv,33 04:mrv,33 05:mrv,33 06:mrv,33 07:mrv,33 08:mrv,33 09:mrv,33 ' +
    '0a:mrv,33 0b:mrv,33 0c:mrv,3 0d:mrv,3 0e:mr,3 0f:mr,3 13:mr,3 16:mrv,2 17:mr,33 18:m,3/r,3 ' +
    '19:m,2/r,2 1a:m,2 1c:mr,33 1d:mr,33 1e:mr,33 20:mr,33 21:mr,33 22:mr,33 23:mr,33 24:mr,33 25:mr,33 ' +
    '28:mrv,33 29:mrv,33 2a:m,33 2b:mrv,33 2c:mv,3 2d:mv,3 2e:mv,3 2f:mv,3 30:mr,33 31:mr,33 32:mr,33 ' +
    '33:mr,33 34:mr,33 35:mr,33 36:mrv,2 37:mrv,33 38:mrv,33 39:mrv,33 3a:mrv,33 3b:mrv,33 3c:mrv,33 ' +
    '3d:mrv,33 3e:mrv,33 3f:mrv,33 40:mrv,33 41:mr,11 45:mrv,33 46:mrv,3 47:mrv,33 49:m,1,1 4b:mkS,1 ' +
    '50:mrv,3 51:mrv,3 52:mrv,3 53:mrv,3 58:mr,3 59:mr,3 5a:m,2 5e:rvkTu,1 6c:rvkTu,1 78:mr,3 79:mr,3 ' +
    '8c:mv,33 8e:mv,33 90:mvsu,33 91:mvsu,33 92:mvsu,33 93:mvsu,33 96:mrv,33 97:mrv,33 98:mrv,33 ' +
    '99:mrv,33 9a:mrv,33 9b:mrv,33 9c:mrv,33 9d:mrv,33 9e:mrv,33 9f:mrv,33 a6:mrv,33 a7:mrv,33 a8:mrv,33 ' +
    'a9:mrv,33 aa:mrv,33 ab:mrv,33 ac:mrv,33 ad:mrv,33 ae:mrv,33 af:mrv,33 b0:m,3 b1:m,3 b4:mrv,30 ' +
    'b5:mrv,30 b6:mrv,33 b7:mrv,33 b8:mrv,33 b9:mrv,33 ba:mrv,33 bb:mrv,33 bc:mrv,33 bd:mrv,33 be:mrv,33 ' +
    'bf:mrv,33 cf:mrv,3 d2:mrv,3 d3:mrv,3 da:mrv,1 db:mr,11 dc:mrv,33 dd:mrv,33 de:mrv,33 df:mrv,33 ' +
    'e0:mVg,11 e1:mVg,11 e2:mVg,11 e3:mVg,11 e4:mVg,11 e5:mVg,11 e6:mVg,11 e7:mVg,11 e8:mVg,11 e9:mVg,11 ' +
    'ea:mVg,11 eb:mVg,11 ec:mVg,11 ed:mVg,11 ee:mVg,11 ef:mVg,11 f7:mrVg,11',
  'vex 2 n':
    '49:=c0,1/m,1,1 50:mrv,3 51:mrv,3 5e:rvkTu,1 6c:rvkTu,1 b0:m,3 d2:mrv,3 d3:mrv,3 da:mrv,1 f2:mrVg,11 ' +
    'f3:mrV,11,e f5:mrVg,11 f7:mrVg,11',
  'vex 3 2': 'f0:mrg,11',
  'vex 3 6':
    '00:mr,20 01:mr,20 02:mrv,3 04:mr,3 05:mr,3 06:mrv,2 08:mr,33 09:mr,33 0a:mrv,33 0b:mrv,33 0c:mrv,33 ' +
    '0d:mrv,33 0e:mrv,33 0f:mrv,33 14:mr,11 15:mr,11 16:mr,11 17:mr,11 18:mrv,2 19:mr,2 1d:mr,3 ' +
    '20:mrv,11 21:mrv,11 22:mrv,11 30:rk,11 31:rk,11 32:rk,11 33:rk,11 38:mrv,2 39:mr,2 40:mrv,33 ' +
    '41:mrv,11 42:mrv,33 44:mrv,33 46:mrv,2 48:mrv,33 49:mrv,33 4a:mrv,3 4b:mrv,3 4c:mrv,3 5c:mrv,33 ' +
    '5d:mrv,33 5e:mrv,33 5f:mrv,33 60:mr,11 61:mr,11 62:mr,11 63:mr,11 68:mrv,33 69:mrv,33 6a:mrv,33 ' +
    '6b:mrv,33 6c:mrv,33 6d:mrv,33 6e:mrv,33 6f:mrv,33 78:mrv,33 79:mrv,33 7a:mrv,33 7b:mrv,33 7c:mrv,33 ' +
    '7d:mrv,33 7e:mrv,33 7f:mrv,33 ce:mrv,30 cf:mrv,30 de:mrv,1 df:mr,11',
  'xop 10 n': '10:mrg,11 12:mrV,11,3',
  'xop 8 n':
    '85:mrv,1 86:mrv,1 87:mrv,1 8e:mrv,1 8f:mrv,1 95:mrv,1 96:mrv,1 97:mrv,1 9e:mrv,1 9f:mrv,1 a2:mrv,33 ' +
    'a3:mrv,11 a6:mrv,1 b6:mrv,1 c0:mr,1 c1:mr,1 c2:mr,1 c3:mr,1 cc:mrv,1 cd:mrv,1 ce:mrv,1 cf:mrv,1 ' +
    'ec:mrv,1 ed:mrv,1 ee:mrv,1 ef:mrv,1',
  'xop 9 n':
    '01:mrV,11,fe 02:mrV,11,42 12:r,11,3 80:mr,3 81:mr,3 82:mr,1 83:mr,1 90:mrv,11 91:mrv,11 92:mrv,11 ' +
    '93:mrv,11 94:mrv,11 95:mrv,11 96:mrv,11 97:mrv,11 98:mrv,11 99:mrv,11 9a:mrv,11 9b:mrv,11 c1:mr,1 ' +
    'c2:mr,1 c3:mr,1 c6:mr,1 c7:mr,1 cb:mr,1 d1:mr,1 d2:mr,1 d3:mr,1 d6:mr,1 d7:mr,1 db:mr,1 e1:mr,1 ' +
    'e2:mr,1 e3:mr,1',
};
